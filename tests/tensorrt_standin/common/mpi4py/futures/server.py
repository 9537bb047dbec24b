"""A worker: it is there until somebody ends it, whatever becomes of those who started it (or a test left it behind)."""

import signal
import time

LEFT_BEHIND_S = 300

signal.alarm(LEFT_BEHIND_S)
while True:
    time.sleep(LEFT_BEHIND_S)
