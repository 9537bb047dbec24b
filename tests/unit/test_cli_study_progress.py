"""Progress of a study: plain lines without a terminal; on one, a bar with cycle, countdown and time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.cli.progress import StudyProgress, finished_line, study_progress
from llenergymeasure.core.progress import PromptsDone, StepFinished, StepStarted, Waiting
from llenergymeasure.study.plan import (
    GapEnded,
    GapStarted,
    GapTick,
    RunFinished,
    RunStarted,
    StudyEvent,
    StudyStarted,
    StudyWarning,
    plan_runs,
)
from result_samples import make_result, make_rich_result
from study_fakes import study_of
from terminal import FakeTerminal

FIRST, SECOND = plan_runs(study_of("x/llama-1b", "y/gpt2"))


def finished(**fields: Any) -> RunFinished:
    return RunFinished(**{"run": FIRST, "total": 2, "result": None, "error": None, "duration_s": 134.2, **fields})


LIFE: tuple[StudyEvent, ...] = (
    StudyStarted(Path("results/demo"), 2, 0, 3),
    RunStarted(FIRST, 2),
    StepStarted("measure", 100),
    PromptsDone("measure", 8, 100, 1024, 3.3),
    StepFinished("measure", "100/100 prompts"),
    finished(result=make_rich_result()),
    GapStarted("config", 60.0, skippable=True),
    GapTick("config", 42.0),
    GapEnded("config", skipped=False),
    StudyWarning("4.2 GB were left on GPU 0"),
    RunStarted(SECOND, 2),
    Waiting("thermal_floor", 30.0),
    finished(run=SECOND, error="Pre-flight failed:\n  - model: gone", logs=Path("results/demo/gpt2_failed")),
)

LINES = """\
Study: 2 runs; skipped points of the grid, because not valid: 3
  in results/demo
✓ [1/2] llama-1b / pytorch / bf16  c1  0.412 J/tok  310 tok/s  2 m 14 s
  Gap between runs: 60 s, Enter skips it
  Note: 4.2 GB were left on GPU 0
✗ [2/2] gpt2 / pytorch / bf16  c1  Pre-flight failed: - model: gone  2 m 14 s
  log: results/demo/gpt2_failed
"""


def draw(stream: io.StringIO, *, verbose: bool = False) -> str:
    progress = StudyProgress(stream, verbose=verbose, n_cycles=3)
    for event in LIFE:
        progress(event)
    progress.close()
    return stream.getvalue()


def test_without_a_terminal_progress_is_plain_lines() -> None:
    assert draw(io.StringIO()) == LINES


def test_a_terminal_shows_the_same_lines_and_a_bar_with_cycle_countdown_and_time() -> None:
    text = draw(FakeTerminal())
    for line in LINES.splitlines():
        assert line in text
    for shown in ("  Runs 0/2", "llama-1b / pytorch / bf16  c1/3", "gap between runs: 42 s left", "[00:00<"):
        assert shown in text


def test_verbose_tells_the_steps_of_each_experiment() -> None:
    assert "    Measuring     100/100 prompts\n" in draw(io.StringIO(), verbose=True)


def test_quiet_draws_nothing() -> None:
    assert study_progress(quiet=True, verbose=False, n_cycles=3) is None


def test_a_resumed_study_says_how_much_is_finished() -> None:
    stream = io.StringIO()
    StudyProgress(stream, verbose=False, n_cycles=1)(StudyStarted(Path("d"), 12, 5, 0))
    assert stream.getvalue() == "Study: 12 runs, 5 of them finished before\n  in d\n"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            finished(result=make_result(avg_energy_per_token_j=None, avg_tokens_per_second=15.25)),
            "✓ [1/2] llama-1b / pytorch / bf16  c1  energy not measured  15.2 tok/s  2 m 14 s",
        ),
        (
            finished(result=make_result(avg_energy_per_token_j=0.0049, avg_tokens_per_second=1234.0), duration_s=4.0),
            "✓ [1/2] llama-1b / pytorch / bf16  c1  4.90 mJ/tok  1,234 tok/s  4.0 s",
        ),
        (
            finished(result=make_result(avg_energy_per_token_j=0.5, avg_tokens_per_second=10.0), error="disk\nis full"),
            "✓ [1/2] llama-1b / pytorch / bf16  c1  0.500 J/tok  10.0 tok/s  2 m 14 s\n  not saved: disk is full",
        ),
        (finished(error="killed"), "✗ [1/2] llama-1b / pytorch / bf16  c1  killed  2 m 14 s"),
    ],
    ids=["unmeasured", "millijoules", "not saved", "failed"],
)
def test_a_finished_run_is_one_line_with_what_went_wrong_below(event: RunFinished, line: str) -> None:
    assert finished_line(event) == line
