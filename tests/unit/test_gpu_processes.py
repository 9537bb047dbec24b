from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llenergymeasure.core.gpu.processes import foreign_pids, process_exists, relatives


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


def test_grandparents_and_grandchildren_are_family_and_siblings_are_not(tmp_path: Path) -> None:
    parents = {2: 1, 3: 2, 4: 3, 5: 4, 6: 2, 7: 6}
    for pid, parent in parents.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) name) S {parent} 0 0")
    (tmp_path / "8").mkdir()  # it ended while it was looked at
    (tmp_path / "self").mkdir()
    assert relatives(4, tmp_path) == {2, 3, 4, 5}


def test_the_family_of_the_starting_process_holds_its_other_children() -> None:
    ask = (
        "import os, sys\n"
        "from llenergymeasure.core.gpu.processes import relatives\n"
        "print(int(sys.argv[1]) in relatives(), int(sys.argv[1]) in relatives(os.getppid()))"
    )
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as sibling:
        command = [sys.executable, "-c", ask, str(sibling.pid)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert sibling.stdin is not None
        sibling.stdin.close()
    assert answer.split() == ["False", "True"]
