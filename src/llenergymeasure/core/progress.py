"""What a running experiment tells the world: small frozen events, sent to whoever passed an observer.

Their fields are text and numbers, so the process of a job sends the same ones as lines of JSON. Inside the measurement
window only `PromptsDone` is sent, once per batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llenergymeasure.core.clock import Clock

Step = Literal["preflight", "baseline", "load", "warmup", "thermal_floor", "measure", "finish"]


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
    """A wait goes on; sent about once a second."""

    step: Step
    remaining_s: float


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


def wait(seconds: float, step: Step, clock: Clock, observer: Observer) -> None:
    """Wait for `seconds` (not at all for 0 or less), sending the remaining time about once a second."""
    end_s = clock.now() + seconds
    while (remaining_s := end_s - clock.now()) > 0:
        observer(Waiting(step, remaining_s))
        clock.sleep(min(TICK_S, remaining_s))
