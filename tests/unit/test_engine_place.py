"""Where an engine's processes write, watched from outside the process that has started them."""

from __future__ import annotations

import subprocess
import sys

LOADING = """
import os, subprocess, sys, time
from llenergymeasure.core.backends.place import EnginePlace
from llenergymeasure.core.host.streams import say_stderr_is_kept

if sys.argv[1] == "job":
    say_stderr_is_kept()
place = EnginePlace()
with place.taken():
    subprocess.run(["sh", "-c", "echo ValueError: half of it is loaded >&2"])
    assert place.cause() == "ValueError: half of it is loaded"
    print("loading", flush=True)
    if sys.argv[2] == "hangs":
        time.sleep(20)
    if sys.argv[2] == "crashes":
        os.abort()
place.close()
"""


def loading(kind: str, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOADING, kind, how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_job_that_is_killed_while_it_loads_has_told_what_was_written() -> None:
    with loading("job", "hangs") as process:
        assert process.stderr is not None
        line = process.stderr.readline()  # comes while it still loads
        assert process.poll() is None
        process.kill()
    assert line == "ValueError: half of it is loaded\n"


def test_the_end_of_it_is_told_too_and_once() -> None:
    _, told = loading("job", "ends").communicate()
    assert told == "ValueError: half of it is loaded\n"


def test_a_crash_while_it_loads_is_told() -> None:
    _, told = loading("job", "crashes").communicate()
    assert "Fatal Python error: Aborted" in told


def test_the_terminal_of_a_single_run_is_left_alone() -> None:
    assert loading("run", "ends").communicate() == ("loading\n", "")
