"""Runs parts, each in a process of its own: a crash, a hang or an out-of-memory costs that part and no other.

A part's process is forked, so that what takes long to import is imported once. When it ends, so does whatever it has
started, in sessions of their own too: the next part needs the board to itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu_check_parts.lines import COULD_NOT_TELL, Line
from gpu_check_parts.plan import REPORT_S, Part

ENDED, FAILED, TIMED_OUT, NO_TIME = "ended", "failed", "ran out of time", "no time was left for it"

LOG_TAIL = 400
"""So many characters of the last line that a failed part wrote go into the report; the traces have all of it."""

END_TIMEOUT_S = 5.0
"""How long to wait for the end of what has been killed, in seconds."""

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Outcome:
    """What became of one part.

    Args:
        ended: One of the words above.
        findings: By line; every line of the part has one.
    """

    part: Part
    ended: str
    took_s: float
    findings: dict[str, dict[str, Any]]
    problems: tuple[str, ...]
    series: tuple[dict[str, Any], ...]


def run_parts(
    parts: Sequence[Part], run: Callable[[Part], int], out: Path, total_s: float, factor: float = 1.0
) -> list[Outcome]:
    """Run `parts` one after the other.

    Args:
        run: Runs a part and returns its exit code; called in the part's own process.
        out: Each part has a directory there.
        total_s: Time for all of them, in seconds.
        factor: So many times its limit each part may take.
    """
    deadline_s = time.monotonic() + total_s - REPORT_S
    outcomes = []
    with _orphans_adopted():
        for part in parts:
            left_s = deadline_s - time.monotonic()
            limit_s = left_s if part.takes_rest else min(factor * part.limit_s, left_s)
            print(f"{part.name:<12} up to {max(0.0, limit_s):3.0f} s  {part.asks}", flush=True)
            outcome = _run(part, run, out / part.name, limit_s)
            outcomes.append(outcome)
            print(f"{'':<12} {outcome.ended} after {outcome.took_s:.1f} s: {_tally(outcome)}", flush=True)
    return outcomes


def _run(part: Part, run: Callable[[Part], int], directory: Path, limit_s: float) -> Outcome:
    directory.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    ended = NO_TIME
    if limit_s > 1.0:
        others = _descendants()
        child = os.fork()
        if child == 0:
            _be_part(part, run, directory / "log.txt", limit_s)
        try:
            ended = _wait(child, limit_s)
        finally:
            _end_family(others)
    log_text = (directory / "log.txt").read_text(errors="replace") if ended == FAILED else ""
    return read_outcome(replace(_nothing(part), ended=ended, took_s=time.monotonic() - started_s), directory, log_text)


def _be_part(part: Part, run: Callable[[Part], int], log: Path, limit_s: float) -> None:
    """The life of a part's process; does not return."""
    code = 1
    try:
        os.setsid()
        nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for old, new in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(old, new)
        sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)
        os.environ["GPU_CHECK_SECONDS"] = f"{limit_s:.0f}"
        code = run(part)
    except BaseException:  # noqa: BLE001 - a process ends here, and its parent reads the log
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, limit_s: float) -> str:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            return ENDED if status == 0 else FAILED
        time.sleep(0.02)
    return TIMED_OUT


def _end_family(others: set[Any]) -> None:
    """Kill a part and whatever it started, which is all below this process but `others`."""
    import psutil

    deadline_s = time.monotonic() + END_TIMEOUT_S
    while (family := _descendants() - others) and time.monotonic() < deadline_s:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in family:
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                process.wait(0.1)  # reaps what has become this process's own child


def _descendants() -> set[Any]:
    import psutil  # comes along as a wheel

    return set(psutil.Process().children(recursive=True))


@contextmanager
def _orphans_adopted() -> Iterator[None]:
    """Be the parent of processes below that lose theirs (Linux), so that none of them is overlooked."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: None
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def _nothing(part: Part) -> Outcome:
    return Outcome(part, NO_TIME, 0.0, {}, (), ())


def read_outcome(outcome: Outcome, directory: Path, log_text: str = "") -> Outcome:
    """The outcome with what the part has left on disk; lines without a finding get one that says why."""
    try:
        content = json.loads((directory / "part.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {"findings": {}, "problems": [], "series": []}
    problems = list(content["problems"])
    if last := log_text.strip().splitlines()[-1:]:
        problems.append(f"its last line: {last[0][-LOG_TAIL:]}")
    findings = {
        line.key: content["findings"].get(line.key) or _missing(line, outcome, problems) for line in outcome.part.lines
    }
    return replace(outcome, findings=findings, problems=tuple(problems), series=tuple(content["series"]))


def _missing(line: Line, outcome: Outcome, problems: Sequence[str]) -> dict[str, Any]:
    reasons = [] if outcome.ended == ENDED else [f"the part {outcome.ended}"]
    reasons += problems
    return {"verdict": COULD_NOT_TELL, "measured": "; ".join(reasons) or "the part did not get there", "figures": {}}


def _tally(outcome: Outcome) -> str:
    verdicts = [found["verdict"] for found in outcome.findings.values()]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
