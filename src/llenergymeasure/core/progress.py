"""What a running experiment tells the world: small frozen events, sent to whoever passed an observer.

Their fields are text and numbers, so the process of a job sends the same ones as lines of JSON. Inside the measurement
window only `PromptsDone` is sent, once per batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Literal

from llenergymeasure.core.clock import Clock

Step = Literal["preflight", "baseline", "load", "warmup", "thermal_floor", "measure", "finish"]


@dataclass(frozen=True, slots=True)
class WaitingStep:
    """A step in which nothing is done: what for, the setting that says for how long, and what a shorter one costs."""

    purpose: str
    field: str
    cut_short: str


WAITING_STEPS: Final[Mapping[Step, WaitingStep]] = {
    "baseline": WaitingStep(
        "idle power", "baseline.duration_seconds", "idle power, and with it energy above idle, is less certain"
    ),
    "thermal_floor": WaitingStep(
        "cooling", "warmup.thermal_floor_seconds", "the device was warmer at the start than in runs that wait"
    ),
}


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step of the lifecycle begins; `total`: prompts or seconds of waiting ahead, where known."""

    step: Step
    total: float | None = None


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A step is over; `detail` is for a reader, e.g. `61.2 W idle (30 s)`."""

    step: Step
    detail: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A wait goes on; sent about once a second. `skippable`: whether somebody can end it."""

    step: Step
    remaining_s: float
    skippable: bool = False


@dataclass(frozen=True, slots=True)
class PromptsDone:
    """Prompts finished so far in `step`, with the output tokens and seconds they took."""

    step: Step
    done: int
    total: int
    output_tokens: int
    elapsed_s: float


Event = StepStarted | StepFinished | Waiting | PromptsDone
Observer = Callable[[Event], None]


def ignore_events(event: Event) -> None:
    """The observer of a caller who asked for none."""


def clock_face(seconds: float) -> str:
    """A length of time as a clock shows it: `00:41`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


TICK_S = 1.0
"""Seconds between two `Waiting` events."""


class WaitSkipped(Exception):  # noqa: N818 (what has happened, and no error)
    """Raised by an observer on `Waiting`: the wait ends here."""


def wait(seconds: float, step: Step, clock: Clock, observer: Observer) -> None:
    """Wait for `seconds` (not at all for 0 or less), sending the remaining time about once a second.

    An observer that raises `WaitSkipped` ends the wait.
    """
    end_s = clock.now() + seconds
    with suppress(WaitSkipped):
        while (remaining_s := end_s - clock.now()) > 0:
            observer(Waiting(step, remaining_s))
            clock.sleep(min(TICK_S, remaining_s))


SkipKey = Callable[[], bool]
"""Whether the user has asked to skip a wait since the last call."""


class Attended:
    """An observer beside somebody who can end waits; `skipped` tells how many seconds were left of those that were."""

    def __init__(self, observer: Observer, skip: SkipKey) -> None:
        self._observer = observer
        self._skip = skip
        self.skipped: dict[Step, float] = {}

    def __call__(self, event: Event) -> None:
        """Pass an event on, and end the wait that it tells of, where that is asked for."""
        if not isinstance(event, Waiting):
            while isinstance(event, StepStarted) and event.step in WAITING_STEPS and self._skip():
                pass  # what was typed before the wait is not about it
            self._observer(event)
            return
        self._observer(replace(event, skippable=True))
        if event.step in self.skipped or self._skip():
            self.skipped.setdefault(event.step, event.remaining_s)
            raise WaitSkipped
