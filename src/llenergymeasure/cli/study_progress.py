"""Progress of a study on stderr: one line per finished run under a bar with cycle, elapsed time and ETA."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from llenergymeasure.cli.progress import LABELS
from llenergymeasure.core.progress import PromptsDone, StepFinished, StepStarted, Waiting
from llenergymeasure.results.summary import duration, joules, one_line, quantity
from llenergymeasure.study.events import (
    GapEnded,
    GapStarted,
    GapTick,
    RunFinished,
    RunStarted,
    StudyEvent,
    StudyFinished,
    StudyStarted,
    StudyWarning,
)

if TYPE_CHECKING:
    from tqdm import tqdm
    from typing_extensions import Never

BAR_FORMAT = "{desc} {n_fmt}/{total_fmt} |{bar:20}| [{elapsed}<{remaining}]{postfix}"
GAP_NAMES = {"config": "between runs", "cycle": "between cycles"}


class StudyProgress:
    """Draws the events of a study.

    Args:
        stream: Where to draw.
        verbose: Also tell the steps of each experiment.
        n_cycles: Cycles in all.
    """

    def __init__(self, stream: TextIO, *, verbose: bool, n_cycles: int) -> None:
        self._stream = stream
        self._verbose = verbose
        self._n_cycles = n_cycles
        self._live = stream.isatty()
        self._bar: tqdm[Never] | None = None

    def __call__(self, event: StudyEvent) -> None:
        """Draw one event."""
        if isinstance(event, StudyStarted):
            self._start(event)
        elif isinstance(event, RunStarted):
            self._note(f"{event.run.title}  c{event.run.cycle}/{self._n_cycles}")
        elif isinstance(event, RunFinished):
            self._write(finished_line(event))
            if self._bar is not None:
                self._bar.update()
        elif isinstance(event, GapStarted):
            hint = ", Enter skips it" if event.skippable else ""
            self._write(f"  Gap {GAP_NAMES[event.kind]}: {event.duration_s:.0f} s{hint}")
        elif isinstance(event, GapTick):
            self._note(f"gap {GAP_NAMES[event.kind]}: {event.remaining_s:.0f} s left")
        elif isinstance(event, StudyWarning):
            self._write(f"  Note: {event.message}")
        elif isinstance(event, StudyFinished):
            self.close()
            self._write("")  # sets the summary off
        elif not isinstance(event, GapEnded):
            self._experiment_step(event)

    def close(self) -> None:
        """Remove the bar; safe to call twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _start(self, event: StudyStarted) -> None:
        kept = f", {event.kept} of them finished before" if event.kept else ""
        skipped = f"; skipped points of the grid, because not valid: {event.skipped}" if event.skipped else ""
        self._write(f"Study: {event.total} runs{kept}{skipped}\n  in {event.directory}")
        if not self._live:
            return
        from tqdm import tqdm

        self._bar = tqdm(
            total=event.total, initial=event.kept, desc="  Runs", file=self._stream, leave=False, bar_format=BAR_FORMAT
        )

    def _experiment_step(self, event: StepStarted | StepFinished | Waiting | PromptsDone) -> None:
        if isinstance(event, StepStarted):
            self._note(LABELS[event.step].lower())
        elif isinstance(event, Waiting):
            self._note(f"{LABELS[event.step].lower()}: {event.remaining_s:.0f} s left")
        elif isinstance(event, PromptsDone):
            self._note(f"{LABELS[event.step].lower()}: {event.done}/{event.total}")
        elif self._verbose:
            self._write(f"    {LABELS[event.step]:<14}{event.detail}")

    def _note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()


def finished_line(event: RunFinished) -> str:
    """What is said of a finished run.

    `✓ [3/12] qwen2.5-0.5b / pytorch / bf16 / batch 8  c1  0.412 J/tok  310 tok/s  2 m 14 s`; below it,
    where the log of a failed run is, or why a result could not be saved.
    """
    head = f"[{event.run.position}/{event.total}] {event.run.title}  c{event.run.cycle}"
    took = duration(event.duration_s)
    if event.result is None:
        line = f"✗ {head}  {one_line(event.error or 'unknown')}  {took}"
        return line if event.logs is None else f"{line}\n  log: {event.logs}"
    per_token_j = event.result.avg_energy_per_token_j
    energy = "energy not measured" if per_token_j is None else f"{joules(per_token_j)}/tok"
    line = f"✓ {head}  {energy}  {quantity(event.result.avg_tokens_per_second)} tok/s  {took}"
    return line if event.error is None else f"{line}\n  not saved: {one_line(event.error)}"


def study_progress(*, quiet: bool, verbose: bool, n_cycles: int) -> StudyProgress | None:
    """The progress of a study on the command line; `None` when quiet."""
    return None if quiet else StudyProgress(sys.stderr, verbose=verbose, n_cycles=n_cycles)
