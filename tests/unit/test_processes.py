from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llenergymeasure.core.host.processes import (
    current_process,
    descendants_of,
    foreign_pids,
    kill_process,
    process_exists,
    relatives,
)


@pytest.mark.parametrize(
    ("listed", "own", "visible", "foreign"),
    [
        ([10], {10, 11}, {10, 11}, []),
        ([10, 99], {10}, {10, 99}, [99]),
        ([99], {10}, {10, 99}, [99]),
        ([5000], {10}, {10}, []),  # another namespace: it may be this very process, seen from outside
        ([5000, 5001], {10}, {10}, [5000, 5001]),  # one of the two is somebody else
        ([10, 5000], {10}, {10}, [5000]),  # the driver lists this process by its own id, so 5000 is a stranger
        ([], {10}, {10}, []),
    ],
)
def test_others_are_told_apart_from_this_process_and_its_family(
    listed: list[int], own: set[int], visible: set[int], foreign: list[int]
) -> None:
    assert list(foreign_pids(listed, own, visible.__contains__)) == foreign


def test_a_real_child_and_parent_are_family() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        family = relatives()
        assert {os.getpid(), os.getppid(), child.pid} - {0} <= family | {1}
        assert process_exists(child.pid)
        assert child.stdin is not None
        child.stdin.close()


FAMILY = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "input()"])
print("started", flush=True)
input()
"""


def test_grandparents_and_grandchildren_are_family_and_siblings_are_not() -> None:
    stranger = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(stranger, stdin=subprocess.PIPE) as sibling,
        subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        (grandchild,) = (process.pid for process in descendants_of(child.pid))
        family = relatives(child.pid)
        assert {os.getppid(), os.getpid(), child.pid, grandchild} - {0, 1} <= family
        assert family.isdisjoint({1, sibling.pid})
        for process in (sibling, child):
            assert process.stdin is not None
            process.stdin.close()


def test_a_process_that_is_gone_is_its_own_family_and_has_no_descendants() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    assert relatives(child.pid) == {child.pid}
    assert descendants_of(child.pid) == ()
    assert not process_exists(child.pid)


def test_descendants_are_found_and_only_the_very_process_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as child:
        (found,) = (process for process in descendants_of(os.getpid()) if process.pid == child.pid)
        assert found.started_ticks is not None
        kill_process(found.model_copy(update={"started_ticks": found.started_ticks + 1}))
        assert child.poll() is None
        kill_process(found)
        assert child.wait(10) == -signal.SIGKILL
    kill_process(found)  # long gone


def test_a_process_is_known_by_the_ticks_the_kernel_counts() -> None:
    """Field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)): state files of earlier releases hold it."""
    kernels = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    assert current_process().started_ticks == kernels


def test_the_family_of_the_starting_process_holds_its_other_children() -> None:
    ask = (
        "import os, sys\n"
        "from llenergymeasure.core.host.processes import relatives\n"
        "print(int(sys.argv[1]) in relatives(), int(sys.argv[1]) in relatives(os.getppid()))"
    )
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as sibling:
        command = [sys.executable, "-c", ask, str(sibling.pid)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert sibling.stdin is not None
        sibling.stdin.close()
    assert answer.split() == ["False", "True"]
