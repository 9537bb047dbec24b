"""Progress of an experiment and of a study on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

from llenergymeasure.core.progress import (
    WAITING_STEPS,
    Event,
    PromptsDone,
    Step,
    StepFinished,
    StepStarted,
    Waiting,
)
from llenergymeasure.domain.readable import counted
from llenergymeasure.results.summary import duration, joules, one_line, quantity
from llenergymeasure.security import for_display
from llenergymeasure.study.plan import (
    GapEnded,
    GapStarted,
    GapTick,
    OnNode,
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

ROWS = 20
"""Told to tqdm, which draws nothing on a terminal that says it has none; one bar at a time needs no more."""

NOT_YET_S = 1e-9
"""Keeps a bar from drawing itself before it is known here: a Ctrl-C in that moment could not remove it."""

BAR_FORMAT = "{desc} {n:.0f}/{total:.0f} |{bar:24}| [{elapsed}<{remaining}]{postfix}"
BUSY_FORMAT = "{desc}"
STUDY_BAR_FORMAT = "{desc} {n_fmt}/{total_fmt} |{bar:10}| [{elapsed}<{remaining}]{postfix}"

GAP_NAMES = {"config": "between runs", "cycle": "between cycles"}


class QuietWhenBroken:
    """A stream that goes silent where another one raises: a closed pipe, a terminal that is gone, a full disk.

    It ends the drawing, not the measurement; and an error inside tqdm would leave tqdm's lock taken for ever, so that
    the next thread that logs could not.

    Args:
        stream: `None`: there is none, as where it was closed before Python began.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        """Whether both write to one place: tqdm removes its bars before somebody writes there."""
        return self._stream is (other._stream if isinstance(other, QuietWhenBroken) else other)

    def __hash__(self) -> int:
        return hash(self._stream)

    def write(self, text: str) -> int:
        """Write `text`, or nothing."""
        with self._silently():
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        with self._silently():
            if self._stream is not None:
                self._stream.flush()

    @property
    def live(self) -> bool:
        """Whether a line can be drawn again and again: on a terminal, and below a cell of a notebook."""
        with self._silently():
            if self._stream is not None:
                return self._stream.isatty() or type(self._stream).__module__.startswith("ipykernel.")
        return False

    @property
    def columns(self) -> int:
        """Width of the terminal, or 80 where it tells none."""
        try:
            told = os.get_terminal_size(self.fileno()).columns
        except (OSError, ValueError, AttributeError):  # no terminal behind it
            told = 0
        return told or shutil.get_terminal_size((80, 24)).columns

    @contextmanager
    def _silently(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: it was closed
            self._stream = None


def remove(bar: tqdm[Never], stream: QuietWhenBroken) -> None:
    """Remove a bar, whatever tqdm was at when a signal came: it knows of neither its last text nor its lock then."""
    bar.clear()
    bar.close()
    stream.write(f"\r{'':{stream.columns - 1}}\r")
    with suppress(RuntimeError):  # this thread does not hold it
        while True:
            bar.get_lock().release()  # type: ignore[no-untyped-call]


class ExperimentProgress:
    """Draws the events of one experiment under a first line that names it; a stream that breaks disturbs nobody.

    `live` tells whether a line is drawn again and again, as on a terminal.
    """

    def __init__(self, stream: TextIO | None, title: str, redraw_interval_s: float = REDRAW_INTERVAL_S) -> None:
        self._stream = QuietWhenBroken(stream)
        self._redraw_interval_s = redraw_interval_s
        self.live = self._stream.live
        self._announced: set[Step] = set()
        self._bar: tqdm[Never] | None = None
        self._write(title)

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, StepStarted):
            self._start(event)
        elif isinstance(event, StepFinished):
            self._finish(event)
        elif isinstance(event, Waiting):
            self._tick(event)
        else:
            self._advance(event)

    def close(self) -> None:
        """Remove the bar, if one is drawn; safe to call twice."""
        bar, self._bar = self._bar, None
        if bar is not None:
            remove(bar, self._stream)

    def end(self, *, spaced: bool) -> None:
        """Close; `spaced` sets off what follows by an empty line."""
        self.close()
        if spaced:
            self._write("")

    def _start(self, event: StepStarted) -> None:
        self.close()
        if not self.live:
            return
        from tqdm import tqdm

        label, total = f"  {LABELS[event.step]:<12}", event.total
        if total:
            layout = BUSY_FORMAT if event.step in WAITING_STEPS else BAR_FORMAT
        else:
            label, layout = f"{label} {BUSY_WITH.get(event.step, '')} …", BUSY_FORMAT
        self._bar = tqdm(
            total=total or None,
            desc=label,
            file=self._stream,
            leave=False,
            ncols=self._stream.columns,
            nrows=ROWS,
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
        said = WAITING_STEPS[event.step]
        if self._bar is not None:
            ending = "; Enter skips" if event.skippable else ""
            left = f"{readable_s(event.remaining_s):>4} left"
            self._bar.set_description_str(f"  {LABELS[event.step]:<12} {left}: {said.purpose} ({said.field}{ending})")
        elif event.step not in self._announced:
            self._announced.add(event.step)
            self._write(f"  {'Waiting':<13}{readable_s(event.remaining_s)}: {said.purpose} ({said.field})")

    def _advance(self, event: PromptsDone) -> None:
        if self._bar is None:
            return
        if event.output_tokens and event.elapsed_s > 0:
            self._bar.set_postfix_str(f"{event.output_tokens / event.elapsed_s:.0f} tok/s", refresh=False)
        self._bar.total = event.total
        self._bar.update(event.done - self._bar.n)

    def _write(self, line: str) -> None:
        self._stream.write(for_display(line) + "\n")
        self._stream.flush()


class StudyProgress:
    """Draws the events of a study: one line per finished run under a bar; `verbose` tells the steps of each too."""

    def __init__(self, stream: TextIO | None, *, verbose: bool, n_cycles: int) -> None:
        self._stream = QuietWhenBroken(stream)
        self._verbose = verbose
        self._n_cycles = n_cycles
        self._shared = ""
        self._live = self._stream.live
        self._bar: tqdm[Never] | None = None

    def __call__(self, event: StudyEvent) -> None:
        """Draw one event."""
        if isinstance(event, StudyStarted):
            self._start(event)
        elif isinstance(event, OnNode):
            self._on_node(event)
        elif isinstance(event, RunStarted):
            self._note(f"{short_title(event.run.title, self._shared)}  c{event.run.cycle}/{self._n_cycles}")
        elif isinstance(event, RunFinished):
            self._write(finished_line(event, self._shared))
            if self._bar is not None:
                self._bar.update()
        elif isinstance(event, GapStarted):
            hint = ", Enter skips it" if event.skippable else ""
            field = f"execution.{event.kind}_gap_seconds"
            self._write(f"  Gap {GAP_NAMES[event.kind]}: {readable_s(event.duration_s)} ({field}){hint}")
        elif isinstance(event, GapTick):
            self._note(f"gap {GAP_NAMES[event.kind]}: {readable_s(event.remaining_s)} left")
        elif isinstance(event, StudyWarning):
            self._write(f"  Note: {event.message}")
        elif isinstance(event, StudyFinished):
            self.close()
            self._write("")  # sets the summary off
        elif not isinstance(event, GapEnded):
            self._experiment_step(event)

    def _on_node(self, told: OnNode) -> None:
        """Of a cluster, where much goes on at once, only what there is to know, and on request each step."""
        if isinstance(told.event, StudyWarning):
            self._write(f"  Note: {told.node}: {told.event.message}")
        elif isinstance(told.event, StepFinished) and self._verbose:
            self._write(f"    {told.node}: {LABELS[told.event.step]:<14}{told.event.detail}")

    def close(self) -> None:
        """Remove the bar; safe to call twice."""
        bar, self._bar = self._bar, None
        if bar is not None:
            remove(bar, self._stream)

    def _start(self, event: StudyStarted) -> None:
        kept = f", {event.kept} of them finished before" if event.kept else ""
        skipped = f"; skipped points of the grid, because not valid: {event.skipped}" if event.skipped else ""
        self._shared = event.shared
        of = f" of {event.shared}" if event.shared else ""
        self._write(f"Study: {counted(event.total, 'run')}{of}{kept}{skipped}\n  in {event.directory}")
        if not self._live:
            return
        from tqdm import tqdm

        self._bar = tqdm(
            total=event.total,
            initial=event.kept,
            desc="  Runs",
            file=self._stream,
            leave=False,
            ncols=self._stream.columns,
            nrows=ROWS,
            bar_format=STUDY_BAR_FORMAT,
        )

    def _experiment_step(self, event: StepStarted | StepFinished | Waiting | PromptsDone) -> None:
        if isinstance(event, StepStarted):
            self._note(LABELS[event.step].lower())
        elif isinstance(event, Waiting):
            self._note(f"{readable_s(event.remaining_s)} left, {WAITING_STEPS[event.step].field}")
        elif isinstance(event, PromptsDone):
            self._note(f"{LABELS[event.step].lower()}: {event.done}/{event.total}")
        elif self._verbose:
            self._write(f"    {LABELS[event.step]:<14}{event.detail}")

    def _note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(for_display(text))

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(for_display(line), file=self._stream)
        else:
            self._stream.write(for_display(line) + "\n")
            self._stream.flush()


def readable_s(seconds: float) -> str:
    """A wait in whole seconds: `60 s`, `5 m 00 s`."""
    return f"{seconds:.0f} s" if seconds < 99.5 else duration(seconds)


def short_title(title: str, shared: str) -> str:
    """A run's title without the parts that all runs of its study share."""
    left_out = shared.split(" / ")
    return " / ".join(part for part in title.split(" / ") if part not in left_out)


def finished_line(event: RunFinished, shared: str = "") -> str:
    """What is said of a finished run, without the `shared` parts of its title.

    `✓ [3/12] bf16 / batch 8  c1  0.412 J/tok  310 tok/s  2 m 14 s`, with `est.` behind joules that no sensor gave;
    below it, where the log of a failed run is, or why a result could not be saved.
    """
    head = f"[{event.run.position}/{event.total}] {short_title(event.run.title, shared)}  c{event.run.cycle}"
    took = duration(event.duration_s) + (f"  on {event.node}" if event.node is not None else "")
    if event.result is None:
        line = f"✗ {head}  {one_line(event.error or 'unknown')}  {took}"
        return line if event.logs is None else f"{line}\n  log: {event.logs}"
    per_token_j = event.result.avg_energy_per_token_j
    energy = "energy not measured" if per_token_j is None else f"{joules(per_token_j)}/tok"
    energy += " est." if per_token_j is not None and event.result.is_estimate else ""
    line = f"✓ {head}  {energy}  {quantity(event.result.avg_tokens_per_second)} tok/s  {took}"
    return line if event.error is None else f"{line}\n  not saved: {one_line(event.error)}"


def study_progress(*, quiet: bool, verbose: bool, n_cycles: int) -> StudyProgress | None:
    """The progress of a study on the command line; `None` when quiet."""
    return None if quiet else StudyProgress(sys.stderr, verbose=verbose, n_cycles=n_cycles)
