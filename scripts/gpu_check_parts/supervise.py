"""Runs parts, each in a process of its own: a crash, a hang or an out-of-memory costs that part and no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu_check_parts.lines import COULD_NOT_TELL, Line
from gpu_check_parts.plan import REPORT_S, Part

ENDED, FAILED, TIMED_OUT, NO_TIME = "ended", "failed", "ran out of time", "no time was left for it"

LOG_TAIL = 400
"""So many characters of the last line that a failed part wrote go into the report; the traces have all of it."""


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
    parts: Sequence[Part], command: Sequence[str], out: Path, total_s: float, factor: float = 1.0
) -> list[Outcome]:
    """Run `parts` one after the other.

    Args:
        command: Runs the part whose name is added to it.
        out: Each part has a directory there.
        total_s: Time for all of them, in seconds.
        factor: So many times its limit each part may take.
    """
    deadline_s = time.monotonic() + total_s - REPORT_S
    outcomes = []
    for part in parts:
        left_s = deadline_s - time.monotonic()
        limit_s = left_s if part.takes_rest else min(factor * part.limit_s, left_s)
        print(f"{part.name:<12} up to {max(0.0, limit_s):3.0f} s  {part.asks}", flush=True)
        outcome = _run(part, [*command, part.name], out / part.name, limit_s)
        outcomes.append(outcome)
        print(f"{'':<12} {outcome.ended} after {outcome.took_s:.1f} s: {_tally(outcome)}", flush=True)
    return outcomes


def _run(part: Part, command: list[str], directory: Path, limit_s: float) -> Outcome:
    directory.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    ended = NO_TIME
    if limit_s > 1.0:
        environ = {**os.environ, "GPU_CHECK_SECONDS": f"{limit_s:.0f}"}
        with (directory / "log.txt").open("wb") as log:
            ended = _wait(command, environ, log, limit_s)
    log_text = (directory / "log.txt").read_text(errors="replace") if ended == FAILED else ""
    return read_outcome(replace(_nothing(part), ended=ended, took_s=time.monotonic() - started_s), directory, log_text)


def _wait(command: list[str], environ: dict[str, str], log: Any, limit_s: float) -> str:
    child = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environ, start_new_session=True
    )
    try:
        return ENDED if child.wait(limit_s) == 0 else FAILED
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        _end_group(child)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End the part and whatever it started: the next one needs the board to itself."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


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


def part_command(script: Path, arguments: Sequence[str]) -> list[str]:
    """The command line that runs one part with this Python; its name is to be added."""
    return [sys.executable, str(script), *arguments, "--child"]
