"""The measurement window: what runs between two synchronised instants, and nothing else.

synchronize │ meter opens │ generate, generate, … │ synchronize │ meter closes
            └─ start_s                                          └─ end_s

Where several processes measure together, they open at one instant and close when the last of them is through: a device
that is done early idles inside the window, and what it draws meanwhile is part of what the run costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    InferenceBackend,
    InferenceEngine,
    RequestOutput,
)
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement
from llenergymeasure.core.progress import Observer, PromptsDone, StepFinished, StepStarted, clock_face

OPENING_LEAD_S: Final = 0.05
"""How far ahead the opening of several processes' windows is announced, so that all know in time, in seconds."""

Barrier = Callable[[float], None]
"""Returns when every process of a run has come to it. Gets how far ahead that is to be announced, in seconds: long
enough, and all go on at the same instant; 0, and each goes on as soon as it hears."""


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in the measurement window.

    Args:
        outputs: One per request and pass, in order.
        passes: How often the prompts were gone through.
        started_at: Wall-clock time of the window's start (UTC).
        ended_at: Wall-clock time of its end (UTC).
    """

    outputs: tuple[RequestOutput, ...]
    energy: EnergyMeasurement
    passes: int
    started_at: datetime
    ended_at: datetime


def measure_window(
    engine: InferenceBackend,
    requests: Sequence[GenerationRequest],
    meter: EnergyBackend,
    clock: Clock,
    observer: Observer,
    *,
    min_duration_s: float = 0.0,
    wait_for_others: Barrier | None = None,
) -> Window:
    """Generate for all `requests` while `meter` measures.

    Args:
        observer: Told after every batch.
        min_duration_s: Whole passes over the requests are added until the window is this long, in seconds.
        wait_for_others: Passed right before the window opens and right before it closes; `None` for one process.

    Raises:
        BackendError: The engine failed; the meter has been stopped.
    """
    outputs: list[RequestOutput] = []
    tally = _Tally(len(requests), clock, observer)
    batched: InferenceEngine = BatchedEngine(engine, tally.add)
    observer(StepStarted("measure", len(requests)))
    engine.reset_peak_memory()
    if wait_for_others is not None:
        wait_for_others(OPENING_LEAD_S)
    engine.synchronize()
    handle = meter.start_tracking()
    tally.start_s = handle.start_s
    started_at = clock.wall()
    try:
        while not outputs or clock.now() - handle.start_s < min_duration_s:
            outputs.extend(batched.run(requests).requests)
        engine.synchronize()
        if wait_for_others is not None:
            wait_for_others(0.0)
    except BaseException:  # the meter's threads must end whatever happened, Ctrl-C included
        meter.stop_tracking(handle).close()
        raise
    energy = meter.stop_tracking(handle)
    ended_at = clock.wall()
    speed = tally.output_tokens / energy.duration_sec
    done = f"{len(outputs)}/{len(outputs)} prompts"
    observer(StepFinished("measure", f"{done}  [{clock_face(energy.duration_sec)}, {speed:.0f} tok/s]"))
    return Window(tuple(outputs), energy, len(outputs) // len(requests), started_at, ended_at)


class _Tally:
    """Counts what is done and tells the observer, once per batch."""

    def __init__(self, per_pass: int, clock: Clock, observer: Observer) -> None:
        self._per_pass = per_pass
        self._clock = clock
        self._observer = observer
        self._done = 0
        self.output_tokens = 0
        self.start_s = 0.0

    def add(self, produced: Sequence[RequestOutput]) -> None:
        """Count one batch."""
        passes_begun = self._done // self._per_pass + 1
        self._done += len(produced)
        self.output_tokens += sum(request.output_tokens for request in produced)
        elapsed_s = self._clock.now() - self.start_s
        self._observer(PromptsDone("measure", self._done, passes_begun * self._per_pass, self.output_tokens, elapsed_s))


class BatchedEngine:
    """An `InferenceEngine` over a backend that takes a batch at a time.

    Args:
        backend: The loaded backend; its `batch_size` says how many requests it takes at once.
        on_batch: Called with each batch's outputs; it runs between two batches and must be quick.
    """

    def __init__(self, backend: InferenceBackend, on_batch: Callable[[Sequence[RequestOutput]], None]) -> None:
        self._backend = backend
        self._on_batch = on_batch

    def run(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for all `requests` in order, and return when the last token is there.

        Raises:
            BackendError: The engine failed.
        """
        outputs: list[RequestOutput] = []
        for batch in split_into_batches(requests, self._backend.batch_size):
            produced = self._backend.generate(batch).requests
            outputs.extend(produced)
            self._on_batch(produced)
        return GenerationOutput(tuple(outputs))


def split_into_batches(
    requests: Sequence[GenerationRequest], batch_size: int | None
) -> list[Sequence[GenerationRequest]]:
    """The requests in order, `batch_size` at a time; all at once for `None`, where the engine batches by itself."""
    size = batch_size or len(requests)
    return [requests[start : start + size] for start in range(0, len(requests), size)]
