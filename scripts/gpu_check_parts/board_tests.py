"""The project's own tests marked `gpu`, by the machine's own pytest."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

from gpu_check_parts.lines import Book, Line
from gpu_check_parts.wheels import ROOT

LINES = (Line("board_tests.gpu", "every test marked `gpu` passes, and none is skipped"),)

MARK = "mark.gpu"


def run_them(rig: Any, book: Book) -> None:
    """Only files that have such tests are collected: the others want packages that a bare machine lacks."""
    files = sorted(
        str(file) for file in (ROOT / "tests").rglob("test_*.py") if MARK in file.read_text(encoding="utf-8")
    )
    report = rig.directory / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", *files],
        cwd=ROOT,
        env=rig.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=max(5.0, rig.left_s - 2.0),
    )
    (rig.directory / "tests.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if not report.exists():
        book.judge(
            "board_tests.gpu", None, f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
        )
        return
    outcomes = _outcomes(ElementTree.parse(report).getroot())
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    skipped = [name for name, outcome in outcomes.items() if outcome == "skipped"]
    measured = f"{len(outcomes) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped"
    if failed:
        measured += f"; failed: {', '.join(failed)}"
    holds = None if len(skipped) == len(outcomes) else not failed and not skipped
    book.judge("board_tests.gpu", holds, measured, outcomes=outcomes)


STEPS = (run_them,)


def _outcomes(root: Any) -> dict[str, str]:
    """`passed`, `failed` or `skipped` by test."""
    found = {}
    for case in root.iter("testcase"):
        kinds = {child.tag for child in case}
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        found[name] = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
    return found
