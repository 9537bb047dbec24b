"""Progress of a run on stderr: bars on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TextIO

from llenergymeasure.core.progress import Event, Observer, PromptsDone, Step, StepFinished, StepStarted, Waiting

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


class ExperimentProgress:
    """Draws the events of one experiment.

    A stream that breaks (a closed pipe, a terminal that is gone, a full disk) ends the drawing, not the measurement.

    Args:
        stream: Where to draw.
        title: First line, which names the experiment.
        redraw_interval_s: Shortest time between two redraws of a bar, in seconds.
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


def experiment_observer(title: str, *, quiet: bool) -> tuple[Observer, ExperimentProgress | None]:
    """The observer for one experiment on the command line.

    Args:
        title: First line, which names the experiment.
        quiet: Draw nothing.

    Returns:
        The observer, and the progress to close when the run ends (`None` when quiet).
    """
    if quiet:
        from llenergymeasure.core.progress import ignore_events

        return ignore_events, None
    progress = ExperimentProgress(sys.stderr, title)
    return progress, progress
