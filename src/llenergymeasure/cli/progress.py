"""Progress of a run on stderr: bars on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from llenergymeasure.core.progress import Event, Observer, PromptsDone, Step, StepFinished, StepStarted, Waiting

if TYPE_CHECKING:
    from tqdm import tqdm
    from typing_extensions import Never

LABELS: dict[Step, str] = {
    "preflight": "Pre-flight",
    "baseline": "Baseline",
    "load": "Model",
    "warmup": "Warm-up",
    "thermal_floor": "Thermal floor",
    "measure": "Measuring",
    "finish": "Results",
}

REDRAW_INTERVAL_S = 0.5
"""Shortest time between two redraws of a bar; drawing inside the measurement window must stay negligible."""

BAR_FORMAT = "{desc} {n:.0f}/{total:.0f} |{bar:24}| [{elapsed}<{remaining}]{postfix}"
WAIT_FORMAT = "{desc} |{bar:24}| {postfix}"


class ExperimentProgress:
    """Draws the events of one experiment.

    Args:
        stream: Where to draw.
        title: First line, which names the experiment.
    """

    def __init__(self, stream: TextIO, title: str) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._bar: tqdm[Never] | None = None
        self._bar_step: Step | None = None
        self._write(title)

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, StepStarted):
            self._start(event)
        elif isinstance(event, StepFinished):
            self.close()
            self._write(f"  {LABELS[event.step]:<14}{event.detail}")
        elif isinstance(event, Waiting):
            self._tick(event)
        else:
            self._advance(event)

    def close(self) -> None:
        """Remove the bar, if one is drawn; safe to call twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _start(self, event: StepStarted) -> None:
        self.close()
        if not self._live or not event.total:
            return
        from tqdm import tqdm

        self._bar_step = event.step
        self._bar = tqdm(
            total=event.total,
            desc=f"  {LABELS[event.step]:<13}",
            file=self._stream,
            leave=False,
            mininterval=REDRAW_INTERVAL_S,
            bar_format=WAIT_FORMAT if event.step in ("baseline", "thermal_floor") else BAR_FORMAT,
        )

    def _tick(self, event: Waiting) -> None:
        if self._bar is not None and self._bar.total is not None:
            self._bar.set_postfix_str(f"{event.remaining_s:.0f} s left", refresh=False)
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
