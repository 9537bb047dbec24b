"""Runs know of each other, and no file that somebody planted is touched by it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from llenergymeasure.core.host.marker import NAME, measuring, shared_marker

HOLDER = """
import sys
from pathlib import Path
from llenergymeasure.core.host.marker import measuring
with measuring(Path(sys.argv[1])) as others:
    print(others(), flush=True)
    sys.stdin.readline()
    print(others(), flush=True)
"""


def test_one_run_is_alone_and_so_is_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        with measuring(tmp_path) as others:
            assert not others()
            assert (tmp_path / NAME).read_bytes() == b""
        assert not (tmp_path / NAME).exists()


def test_whoever_leaves_last_removes_it(tmp_path: Path) -> None:
    with ExitStack() as longer:
        with measuring(tmp_path):
            others = longer.enter_context(measuring(tmp_path))
        assert (tmp_path / NAME).exists()
        with measuring(tmp_path) as later:
            assert later()
        assert others()
    assert list(tmp_path.iterdir()) == []


def test_one_that_containers_share_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with measuring():
        assert shared_marker() == tmp_path / NAME
    with measuring() as others:
        assert not others()
    assert (tmp_path / NAME).exists()


def test_one_that_is_removed_while_somebody_takes_it_is_not_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaver, lock = ExitStack(), fcntl.flock
    leaver.enter_context(measuring(tmp_path))

    def too_late(file: int, how: int) -> None:
        leaver.close()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with measuring(tmp_path) as others:
        monkeypatch.undo()
        assert not others()
        with measuring(tmp_path) as later:
            assert later()


def test_two_processes_see_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "False\n"  # it came first
        with measuring(tmp_path) as others:
            assert others()
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "True\n"
            other.wait()
            assert others()  # it was there when this one began
    with measuring(tmp_path) as others:
        assert not others()


def test_one_that_comes_later_is_seen_at_the_end(tmp_path: Path) -> None:
    with measuring(tmp_path) as first:
        assert not first()
        with measuring(tmp_path) as second:
            assert second()
            assert first()


def test_one_that_came_and_went_is_seen_as_well(tmp_path: Path) -> None:
    with measuring(tmp_path) as long:
        began = (tmp_path / NAME).stat().st_mtime_ns
        while (tmp_path / NAME).stat().st_mtime_ns == began:  # file systems count time in milliseconds
            with measuring(tmp_path) as short:
                assert short()
        assert long()


def test_a_run_that_failed_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), measuring(tmp_path):
        _ = 1 / 0
    with measuring(tmp_path) as others:
        assert not others()


def test_what_was_forked_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    with measuring(tmp_path):
        (tmp_path / "alive").touch()
        child = os.fork()
        if child == 0:  # the open file goes to it as well
            while (tmp_path / "alive").exists():
                os.sched_yield()
            os._exit(0)
    try:
        with measuring(tmp_path) as others:
            assert not others()
    finally:
        (tmp_path / "alive").unlink()
        os.waitpid(child, 0)


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path, victim: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [_link, _hard_link, _fifo, _directory])
def test_what_is_no_plain_file_of_its_own_is_left_alone(plant: Callable[[Path, Path], None], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    plant(tmp_path / NAME, victim)
    with measuring(tmp_path) as others:
        assert not others()
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "anything"])
def test_a_file_that_another_user_made_serves_as_well_and_stays_as_it_is(content: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(content)
    (tmp_path / NAME).chmod(0o600)
    with measuring(tmp_path):
        with measuring(tmp_path) as others:
            assert others()
        assert (tmp_path / NAME).read_text() == content
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / NAME).exists() == bool(content)  # what somebody wrote is somebody's


def test_other_users_may_open_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with measuring(tmp_path):
            assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_without_a_place_for_it_nobody_is_told(tmp_path: Path) -> None:
    with measuring(tmp_path / "nowhere") as others:
        assert not others()
