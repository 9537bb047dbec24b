"""Where an engine's processes write, watched from outside the process that has started them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from llenergymeasure.core.backends.place import EnginePlace

LOADING = """
import os, subprocess, sys, time
from llenergymeasure.core.backends.place import EnginePlace
from llenergymeasure.core.host.streams import say_stderr_is_kept

if sys.argv[1] == "job":
    say_stderr_is_kept()
place = EnginePlace("an engine")
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


def test_what_a_single_run_kept_off_the_terminal_is_in_its_log(caplog: pytest.LogCaptureFixture) -> None:
    place = EnginePlace("an engine")
    with place.taken():
        os.write(2, b"half of it is loaded\n")
    with caplog.at_level(logging.INFO):
        place.close()
    assert caplog.messages == ["What an engine wrote to standard error:\nhalf of it is loaded\n"]


PLACES = """
import os
from llenergymeasure.core.backends.place import EnginePlace

place = EnginePlace("an engine", ["ENGINE_SOCKETS"])
with place.taken():
    print(os.environ["ENGINE_SOCKETS"], os.environ["TMPDIR"], sep="\\n")
place.close()
"""


@pytest.mark.parametrize("length", [1, 200])
def test_sockets_have_room_whatever_the_length_of_the_temporary_directorys_path(tmp_path: Path, length: int) -> None:
    temporary = tmp_path / ("d" * length)
    temporary.mkdir()
    told = subprocess.run(
        [sys.executable, "-c", PLACES], env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True
    ).stdout.splitlines()
    sockets, files = map(Path, told)
    assert len(os.fsencode(sockets / str(uuid.uuid4()))) <= 107
    assert files.parent == temporary
    assert not sockets.exists()
    assert not files.exists()
