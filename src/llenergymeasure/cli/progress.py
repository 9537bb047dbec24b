"""Progress of an experiment and of a study on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TextIO

from llenergymeasure.core.progress import Event, PromptsDone, Step, StepFinished, StepStarted, Waiting
from llenergymeasure.results.summary import duration, joules, one_line, quantity
from llenergymeasure.study.plan import (
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


LABELS: Final[dict[Step, str]] = {
    "preflight": "Pre-flight",
    "baseline": "Baseline",
    "load": "Model",
    "warmup": "Warm-up",
    "thermal_floor": "Thermal floor",
    "measure": "Measuring",
    "finish": "Results",
}

WITHOUT_LINE: Final = frozenset({"load", "thermal_floor", "finish"})
"""Steps that end without a line of their own: the header names the device, warm-up's line the thermal floor."""

BUSY_WITH: Final[dict[Step, str]] = {"preflight": "checking", "load": "loading", "finish": "evaluating"}
"""What a terminal shows of a step whose length nobody knows."""

REDRAW_INTERVAL_S = 0.5
"""Shortest time between two redraws of a bar; drawing inside the measurement window must stay negligible."""

NOT_YET_S = 1e-9
"""Keeps a bar from drawing itself before it is known here: a Ctrl-C in that moment could not remove it."""

BAR_FORMAT = "{desc} {n:.0f}/{total:.0f} |{bar:24}| [{elapsed}<{remaining}]{postfix}"
WAIT_FORMAT = "{desc} |{bar:24}|"
BUSY_FORMAT = "{desc}"
STUDY_BAR_FORMAT = "{desc} {n_fmt}/{total_fmt} |{bar:20}| [{elapsed}<{remaining}]{postfix}"

GAP_NAMES = {"config": "between runs", "cycle": "between cycles"}


class ExperimentProgress:
    """Draws the events of one experiment under a first line that names it.

    A stream that breaks (a closed pipe, a terminal that is gone, a full disk) ends the drawing, not the measurement.
    """

    def __init__(self, stream: TextIO, title: str, redraw_interval_s: float = REDRAW_INTERVAL_S) -> None:
        self._stream = stream
        self._redraw_interval_s = redraw_interval_s
        self._broken = False
        self._live = stream.isatty()
        self._bar: tqdm[Never] | None = None
        self._draw(title)

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        self._draw(event)

    def close(self) -> None:
        """Remove the bar, if one is drawn; safe to call twice."""
        bar, self._bar = self._bar, None
        if bar is None:
            return
        try:
            bar.clear()
            bar.close()
        except OSError:
            bar.disable = True  # or it tries again when it is collected

    def end(self, *, spaced: bool) -> None:
        """Close; `spaced` sets off what follows by an empty line."""
        self.close()
        if spaced:
            self._draw("")

    def _draw(self, what: Event | str) -> None:
        if self._broken:
            return
        try:
            if isinstance(what, str):
                self._write(what)
            elif isinstance(what, StepStarted):
                self._start(what)
            elif isinstance(what, StepFinished):
                self._finish(what)
            elif isinstance(what, Waiting):
                self._tick(what)
            else:
                self._advance(what)
        except OSError:
            self._broken = True

    def _start(self, event: StepStarted) -> None:
        self.close()
        if not self._live:
            return
        from tqdm import tqdm

        label, total = f"  {LABELS[event.step]:<12}", event.total
        if total:
            layout = WAIT_FORMAT if event.step in ("baseline", "thermal_floor") else BAR_FORMAT
        else:
            label, layout = f"{label} {BUSY_WITH.get(event.step, '')} …", BUSY_FORMAT
        self._bar = tqdm(
            total=total or None,
            desc=label,
            file=self._stream,
            leave=False,
            mininterval=self._redraw_interval_s,
            bar_format=layout,
            delay=NOT_YET_S,
        )
        self._bar.refresh()

    def _finish(self, event: StepFinished) -> None:
        self.close()
        if event.step not in WITHOUT_LINE:
            self._write(f"  {LABELS[event.step]:<13}{event.detail}")

    def _tick(self, event: Waiting) -> None:
        if self._bar is not None and self._bar.total is not None:
            label = f"  {LABELS[event.step]:<12} {event.remaining_s:2.0f} s left"
            self._bar.set_description_str(label, refresh=False)
            self._bar.update(self._bar.total - event.remaining_s - self._bar.n)

    def _advance(self, event: PromptsDone) -> None:
        if self._bar is None:
            return
        if event.output_tokens and event.elapsed_s > 0:
            self._bar.set_postfix_str(f"{event.output_tokens / event.elapsed_s:.0f} tok/s", refresh=False)
        self._bar.total = event.total
        self._bar.update(event.done - self._bar.n)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class StudyProgress:
    """Draws the events of a study: one line per finished run under a bar; `verbose` tells the steps of each too."""

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
            total=event.total,
            initial=event.kept,
            desc="  Runs",
            file=self._stream,
            leave=False,
            bar_format=STUDY_BAR_FORMAT,
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
