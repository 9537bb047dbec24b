"""Nothing of a job outlives it or its launcher: daemons, zombies and stopped guardians are really made here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import children
from child_runs import TESTS, Runs, is_gone, wait_until
from llenergymeasure.runners.supervise import ChildFailedError


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def ids_of(directory: Path) -> list[int]:
    """The job, its guardian and the daemon it has started."""
    path = directory / "child0" / "ids"
    assert wait_until(lambda: path.exists() and len(path.read_text().split()) == 3)
    return [int(pid) for pid in path.read_text().split()]


def test_a_daemon_that_a_job_leaves_ends_with_it(runs: Runs) -> None:
    assert runs.run(children.leave_a_daemon, "end") == "result"
    assert all(is_gone(pid) for pid in ids_of(runs.work_dir))


def test_a_daemon_ends_with_a_job_that_crashed(runs: Runs) -> None:
    with pytest.raises(ChildFailedError, match="killed by signal 9"):
        runs.run(children.leave_a_daemon, "crash")
    assert all(is_gone(pid) for pid in ids_of(runs.work_dir))


def test_a_daemon_ends_with_a_job_that_took_too_long(runs: Runs) -> None:
    with pytest.raises(ChildFailedError, match="took longer"):
        runs.run(children.leave_a_daemon, "hang", task_s=1)
    assert all(is_gone(pid) for pid in ids_of(runs.work_dir))


LAUNCHER = """
    import ctypes, os
    from pathlib import Path
    import children
    from child_runs import Runs
    from llenergymeasure.runners.supervise import ChildFailedError

    def left():
        return [pid for pid in filter(str.isdecimal, os.listdir("/proc")) if parent_of(pid) == os.getpid()]

    def parent_of(pid):
        try:
            return int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return None

    runs = Runs(Path.cwd())
"""


def launcher(work_dir: Path, code: str) -> subprocess.Popen[str]:
    """A launcher in a process of its own, which is told what to do."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LAUNCHER) + code],
        cwd=work_dir,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*sys.path, TESTS]))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("function", ["leave_a_daemon, 'end'", "leave_a_daemon, 'crash'", "hang_at_exit, None"])
def test_the_first_process_of_a_container_gathers_no_zombies(tmp_path: Path, function: str) -> None:
    """Orphans are handed to the first process of a container; here to one that asks for them (prctl(2), 36)."""
    code = f"""
ctypes.CDLL(None).prctl(36, 1)
try:
    runs.run(children.{function})
except ChildFailedError:
    pass
print(left(), flush=True)
"""
    with launcher(tmp_path, code) as process:
        assert process.communicate(timeout=120)[0].strip() == "[]"


def test_a_job_ends_with_its_guardian_and_what_nobody_can_find_any_more_is_told(tmp_path: Path) -> None:
    code = """
try:
    runs.run(children.leave_a_daemon, "hang")
except ChildFailedError as error:
    print(error.error_type, flush=True)
"""
    with launcher(tmp_path, code) as process:
        job, guardian, daemon = ids_of(tmp_path)
        os.kill(guardian, signal.SIGKILL)
        said = process.communicate(timeout=120)
    os.kill(daemon, signal.SIGKILL)
    assert said[0] == "Crash\n"
    assert "child0 has left a process that still has its output open" in said[1]
    assert is_gone(job)


@pytest.mark.parametrize("trouble", [signal.SIGSTOP, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTSTP])
def test_whatever_a_guardian_was_sent_all_ends_with_the_launcher(tmp_path: Path, trouble: signal.Signals) -> None:
    with launcher(tmp_path, "runs.run(children.leave_a_daemon, 'hang')") as process:
        everybody = ids_of(tmp_path)
        os.kill(everybody[1], trouble)
        process.kill()
    assert wait_until(lambda: all(is_gone(pid) for pid in everybody))


@pytest.mark.parametrize("job_too", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stopped_guardian_is_found_and_ended(tmp_path: Path, job_too: signal.Signals) -> None:
    code = """
try:
    runs.run(children.leave_a_daemon, "hang", task_s=1)
except ChildFailedError as error:
    print(error, flush=True)
"""
    with launcher(tmp_path, code) as process:
        everybody = ids_of(tmp_path)
        os.kill(everybody[1], signal.SIGSTOP)
        os.kill(everybody[0], job_too)
        said = process.communicate(timeout=120)[0]
    assert "killed by signal 9" in said or "took longer" in said
    assert all(is_gone(pid) for pid in everybody)
