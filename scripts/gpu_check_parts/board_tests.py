"""The project's own tests marked `gpu`, by the machine's own pytest."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from gpu_check_parts.lines import Book, Line
from gpu_check_parts.wheels import ROOT

LINES = (Line("board_tests.gpu", "every test marked `gpu` passes, and none is skipped"),)

MARK = "mark.gpu"

FAILED = ("FAILED", "ERROR")
OUTCOME = re.compile(r"^\S*?(\w+\.py::\S+) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)


def run_them(rig: Any, book: Book) -> None:
    """Only files that have such tests are collected: the others want packages that a bare machine lacks."""
    files = sorted(
        str(file) for file in (ROOT / "tests").rglob("test_*.py") if MARK in file.read_text(encoding="utf-8")
    )
    log = rig.directory / "tests.txt"
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider"]
    with log.open("wb") as output:
        tests = subprocess.Popen(
            [*command, *files], cwd=ROOT, env=rig.environment(), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            tests.wait(max(5.0, rig.left_s - 3.0))
        except subprocess.TimeoutExpired:  # what has run by then counts
            tests.kill()
    found = dict(OUTCOME.findall(log.read_text(encoding="utf-8", errors="replace")))
    failed, skipped = ([name for name, word in found.items() if word in words] for words in (FAILED, ("SKIPPED",)))
    ended = "" if tests.returncode is not None and tests.returncode >= 0 else ", and its time ran out"
    measured = f"{len(found) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped{ended}"
    if failed:
        measured += f"; failed: {', '.join(failed)}"
    unknown = len(skipped) == len(found) or (ended and not failed)
    book.judge("board_tests.gpu", None if unknown else not failed and not skipped, measured, outcomes=found)


STEPS = (run_them,)
