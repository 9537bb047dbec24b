"""A short version of the fault harness; `python -m tests.faults` is the long one."""

from __future__ import annotations

import shutil

import pytest
from tests.faults.harness import Harness, evenly, random_delays

POINTS = 4


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    if shutil.which("gcc") is None:
        pytest.skip("the failing files are built with gcc, which is not installed")
    return Harness(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def changes(harness: Harness) -> int:
    return harness.changes()


@pytest.mark.parametrize(("kind", "lasting"), [("kill", False), ("ENOSPC", True), ("EIO", False)])
def test_no_change_of_a_file_that_fails_or_is_the_last_costs_a_finished_result(
    harness: Harness, changes: int, kind: str, lasting: bool
) -> None:
    for number in evenly(changes, POINTS):
        harness.fail_at(number, kind, lasting=lasting)


def test_no_moment_to_be_killed_costs_a_finished_result(harness: Harness) -> None:
    for delay_s in random_delays(POINTS, seed=7):
        harness.kill_after(delay_s)
