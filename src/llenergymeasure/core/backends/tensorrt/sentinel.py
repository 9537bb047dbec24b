"""Ends what an engine has started once the process that loaded it is gone, also by SIGKILL.

A script: it waits for the end of its input, which only that process holds open, and kills every process that was
started with a mark in its environment, in whatever session (on Linux, where `/proc` shows it).
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path


def end_marked(mark: bytes) -> None:
    """Kill every process in whose environment `mark` (`NAME=value`) is."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone, or another user's
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


if __name__ == "__main__":
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_marked(sys.argv[1].encode())
