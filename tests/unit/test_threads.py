"""What many threads take of memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

THREADS = """
import ctypes, threading
from llenergymeasure.core.host.threads import share_one_heap

def eight_at_once():
    meeting = threading.Barrier(8)
    def allocate():
        held = bytes(10_000)
        meeting.wait()
    threads = [threading.Thread(target=allocate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def heaps(code: str, **variables: str) -> int:
    """How many heaps glibc has after some code, by its own account."""
    command = [sys.executable, "-c", f"{THREADS}{code}\nctypes.CDLL(None).malloc_stats()"]
    environment = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}
    said = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=True)
    return said.stderr.count("Arena ")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="needs glibc")
def test_threads_share_one_heap_where_that_is_asked_for_and_the_user_has_not_said_otherwise() -> None:
    shared = "share_one_heap()\neight_at_once()"
    assert heaps("eight_at_once()") > 1
    assert heaps(shared) == 1
    assert heaps(shared, MALLOC_ARENA_MAX="4") > 1
