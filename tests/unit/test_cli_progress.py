"""Progress of one experiment: the documented lines, bars only where there is a terminal, and no harm done."""

from __future__ import annotations

import gc
import io
import logging
import sys
import threading
from pathlib import Path

import pytest
from tqdm import tqdm

from llenergymeasure.cli.terminal import configured_logging
from llenergymeasure.core.progress import Event, PromptsDone, StepFinished, StepStarted, Waiting, clock_face
from llenergymeasure.study.display import ExperimentProgress, StudyProgress
from llenergymeasure.study.plan import StudyEvent, StudyStarted, StudyWarning
from terminal import FakeTerminal, screen

TITLE = "Experiment: qwen2.5-0.5b / pytorch / bf16 / batch 8 on NVIDIA A100-SXM4-80GB"

LIFE: tuple[Event, ...] = (
    StepStarted("preflight"),
    StepFinished("preflight", "ok"),
    StepStarted("baseline", 30.0),
    Waiting("baseline", 30.0, skippable=True),
    Waiting("baseline", 1.0, skippable=True),
    StepFinished("baseline", "61.2 W idle (30 s)"),
    StepStarted("load"),
    StepFinished("load", "Qwen/Qwen2.5-0.5B on NVIDIA A100-SXM4-80GB"),
    StepStarted("warmup", 5),
    PromptsDone("warmup", 5, 5, 0, 2.0),
    StepFinished("warmup", "5/5 prompts, then 60 s thermal floor"),
    StepStarted("thermal_floor", 160.0),
    Waiting("thermal_floor", 160.0),
    Waiting("thermal_floor", 99.0),
    StepFinished("thermal_floor", "160 s"),
    StepStarted("measure", 100),
    PromptsDone("measure", 8, 100, 1024, 3.3),
    PromptsDone("measure", 100, 100, 12_800, 41.3),
    StepFinished("measure", "100/100 prompts  [00:41, 310 tok/s]"),
    StepStarted("finish"),
)

LINES = [
    TITLE,
    "  Pre-flight   ok",
    "  Baseline     61.2 W idle (30 s)",
    "  Warm-up      5/5 prompts, then 60 s thermal floor",
    "  Measuring    100/100 prompts  [00:41, 310 tok/s]",
]


def draw(stream: io.StringIO, events: tuple[Event, ...] = LIFE, *, end: bool = True) -> str:
    progress = ExperimentProgress(stream, TITLE, redraw_interval_s=0)
    for event in events:
        progress(event)
    if end:
        progress.end(spaced=False)
    return stream.getvalue()


def test_without_a_terminal_progress_is_the_documented_lines_and_why_it_waits() -> None:
    title, preflight, baseline, warmup, measuring = LINES
    waits = (
        "  Waiting      30 s: idle power (baseline.duration_seconds)",
        "  Waiting      2 m 40 s: cooling (warmup.thermal_floor_seconds)",
    )
    assert draw(io.StringIO()).splitlines() == [title, preflight, waits[0], baseline, warmup, waits[1], measuring]


def test_a_terminal_is_left_with_the_same_lines_and_no_bar() -> None:
    assert screen(draw(FakeTerminal())) == [*LINES, ""]


def test_a_notebook_gets_the_bar() -> None:
    output = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    assert "Measuring    8/100 |" in draw(output, LIFE[:17])


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        (0, "  Pre-flight   checking …"),
        (3, "  Baseline     30 s left: idle power (baseline.duration_seconds; Enter skips)"),
        (6, "  Model        loading …"),
        (12, "  Thermal floor 2 m 40 s left: cooling (warmup.thermal_floor_seconds)"),
        (16, "  Measuring    8/100 |"),
        (19, "  Results      evaluating …"),
    ],
)
def test_a_terminal_shows_what_goes_on(last: int, shown: str) -> None:
    assert screen(draw(FakeTerminal(), LIFE[: last + 1], end=False))[-1].startswith(shown)


def test_a_run_that_ends_early_leaves_no_bar_behind() -> None:
    assert screen(draw(FakeTerminal(), LIFE[:4])) == [*LINES[:2], ""]


def test_the_summary_is_set_off_by_an_empty_line() -> None:
    stream = io.StringIO()
    ExperimentProgress(stream, TITLE).end(spaced=True)
    assert stream.getvalue() == f"{TITLE}\n\n"


class BreakingStream(FakeTerminal):
    """A terminal that goes away after so many writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.writes_left = writes

    def write(self, text: str) -> int:
        if self.writes_left == 0:
            raise BrokenPipeError(32, "Broken pipe")
        self.writes_left -= 1
        return super().write(text)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("writes", range(12))
def test_a_stream_that_breaks_never_disturbs_the_measurement(writes: int) -> None:
    draw(BreakingStream(writes))
    gc.collect()  # nor does what tqdm does when a bar is collected
    assert_others_can_log()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("writes", range(8))
def test_a_stream_that_breaks_never_disturbs_a_study(writes: int, tmp_path: Path) -> None:
    progress = StudyProgress(BreakingStream(writes), verbose=True, n_cycles=1)
    events: tuple[StudyEvent, ...] = (StudyStarted(tmp_path, 3, 0, 0), *LIFE, StudyWarning("a note"))
    for event in events:
        progress(event)
    progress.close()
    gc.collect()
    assert_others_can_log()


def assert_others_can_log() -> None:
    """A message of another thread takes tqdm's lock, which every bar of the process shares."""
    free: list[bool] = []

    def take() -> None:
        free.append(tqdm.get_lock().locks[-1].acquire(timeout=1))
        if free[0]:
            tqdm.get_lock().locks[-1].release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert free == [True]


class InterruptingTerminal(FakeTerminal):
    """Ctrl-C comes while the wait is drawn, before whoever draws knows that it is."""

    def write(self, text: str) -> int:
        written = super().write(text)
        if "left:" in text:
            raise KeyboardInterrupt
        return written


def test_a_signal_while_a_bar_is_drawn_leaves_nothing_of_it_and_no_lock() -> None:
    terminal = InterruptingTerminal()
    progress = ExperimentProgress(terminal, TITLE, redraw_interval_s=0)
    progress(StepStarted("baseline", 30.0))
    with pytest.raises(KeyboardInterrupt):
        progress(Waiting("baseline", 30.0, skippable=True))
    progress.end(spaced=False)
    assert screen(terminal.getvalue()) == [TITLE, ""]
    assert_others_can_log()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_stream_that_is_closed_or_missing_gets_nothing(stream: io.StringIO | None) -> None:
    if stream is not None:
        stream.close()
    progress = ExperimentProgress(stream, TITLE)
    for event in LIFE:
        progress(event)
    progress.end(spaced=True)


def test_a_log_message_appears_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with configured_logging(verbose=False):
        progress = ExperimentProgress(stream, TITLE)
        progress(StepStarted("measure", 100))
        logging.getLogger("llenergymeasure.test").warning("the power limit is lowered")
        shown = screen(stream.getvalue())
        progress.end(spaced=False)
    assert shown[:2] == [TITLE, "the power limit is lowered"]
    assert shown[2].startswith("  Measuring")


def test_logging_is_as_it_was_after_a_command() -> None:
    logger = logging.getLogger("llenergymeasure")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with configured_logging(verbose=True):
        assert logger.isEnabledFor(logging.DEBUG)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


@pytest.mark.parametrize(("seconds", "shown"), [(0.1, "00:00"), (41.3, "00:41"), (59.6, "01:00"), (3723, "1:02:03")])
def test_elapsed_time_reads_like_a_clock(seconds: float, shown: str) -> None:
    assert clock_face(seconds) == shown
