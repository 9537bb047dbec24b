"""The measurement window: what runs between two synchronised instants, and nothing else; and the slice that counts.

synchronize │ meter opens │ generate, generate, … │ synchronize │ meter closes
            └─ start_s                                          └─ end_s

Where several processes measure together, they open at one instant and close when the last of them is through: a device
that is done early idles inside the window, and what it draws meanwhile is part of what the run costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from llenergymeasure.config.models import ExperimentConfig, MeasurementConfig
from llenergymeasure.core.backends.protocol import (
    CountsEnergy,
    GenerationOutput,
    GenerationRequest,
    InferenceBackend,
    RequestOutput,
    split_into_batches,
)
from llenergymeasure.core.backends.steps import StepLog, joined
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.integrate import energy_between
from llenergymeasure.core.energy.spans import Span
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement
from llenergymeasure.core.metrics.counting import TokenCounts, count_tokens, count_tokens_between, full_batch_interval
from llenergymeasure.core.progress import Observer, PromptsDone, StepFinished, StepStarted, clock_face
from llenergymeasure.domain.base import Methodology
from llenergymeasure.domain.readable import duration
from llenergymeasure.exceptions import ExperimentError

OPENING_LEAD_S: Final = 0.05
"""How far ahead the opening of several processes' windows is announced, so that all know in time, in seconds."""

Barrier = Callable[[float], None]
"""Returns when every process of a run has come to it. Gets how far ahead that is to be announced, in seconds: long
enough, and all go on at the same instant; 0, and each goes on as soon as it hears."""


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in the measurement window, one output per request and pass; its edges on the wall clock (UTC).

    Args:
        compilations: Programs compiled and graphs recorded in it, as far as the engine tells.
        steps: The engine's steps in it; `None` where it does not tell.
        engine_j: What a meter of the engine's own counted from before it to after it; `None`: it has none.
    """

    outputs: tuple[RequestOutput, ...]
    energy: EnergyMeasurement
    started_at: datetime
    ended_at: datetime
    compilations: int = 0
    steps: StepLog | None = None
    engine_j: float | None = None


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
    steps: StepLog | None = StepLog()
    output_tokens = compilations = 0

    def add(produced: GenerationOutput) -> None:
        nonlocal output_tokens, compilations, steps
        planned = (len(outputs) // len(requests) + 1) * len(requests)
        outputs.extend(produced.requests)
        output_tokens += sum(request.output_tokens for request in produced.requests)
        compilations += produced.compilations
        steps = joined(steps, produced.steps)
        observer(PromptsDone("measure", len(outputs), planned, output_tokens, clock.now() - handle.start_s))

    batched = BatchedEngine(engine, add)
    observer(StepStarted("measure", len(requests)))
    engine.reset_peak_memory()
    with _own_meter(engine) as own_j:  # around the window, not in it: reading a board's counter takes up to 22 ms
        if wait_for_others is not None:
            wait_for_others(OPENING_LEAD_S)
        engine.synchronize()
        handle = meter.start_tracking()
        started_at = clock.wall()
        try:
            while not outputs or clock.now() - handle.start_s < min_duration_s:
                batched.run(requests)
            engine.synchronize()
            if wait_for_others is not None:
                wait_for_others(0.0)
        except BaseException:  # the meter's threads must end whatever happened, Ctrl-C included
            meter.stop_tracking(handle).close()
            raise
        energy = meter.stop_tracking(handle)
    ended_at = clock.wall()
    took = f"[{clock_face(energy.duration_sec)}, {output_tokens / energy.duration_sec:.0f} tok/s]"
    observer(StepFinished("measure", f"{len(outputs)}/{len(outputs)} prompts  {took}"))
    engine_j = own_j() or None  # 0 J: a counter that never moved
    return Window(tuple(outputs), energy, started_at, ended_at, compilations, steps or None, engine_j)


def _own_meter(engine: InferenceBackend) -> AbstractContextManager[Callable[[], float | None]]:
    return engine.counting_energy() if isinstance(engine, CountsEnergy) else nullcontext(lambda: None)


class BatchedEngine:
    """An `InferenceEngine` over a loaded backend that takes a batch at a time.

    Args:
        on_batch: Called with each batch's outputs, between two batches: it must be quick.
    """

    def __init__(self, backend: InferenceBackend, on_batch: Callable[[GenerationOutput], None]) -> None:
        self._backend = backend
        self._on_batch = on_batch

    def run(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for all `requests` in order, and return when the last token is there.

        Raises:
            BackendError: The engine failed.
        """
        outputs: list[RequestOutput] = []
        steps: StepLog | None = StepLog()
        compilations = 0
        for batch in split_into_batches(requests, self._backend.batch_size):
            produced = self._backend.generate(batch)
            outputs.extend(produced.requests)
            compilations += produced.compilations
            steps = joined(steps, produced.steps)
            self._on_batch(produced)
        return GenerationOutput(tuple(outputs), compilations, steps or None)


@dataclass(frozen=True, slots=True)
class MeasurementSlice:
    """The part of a window that goes into the headline figures, its instants on the measurement clock in seconds."""

    methodology: Methodology
    start_s: float
    end_s: float
    tokens: TokenCounts
    energy: EnergyMeasurement

    def whole_requests(self, outputs: Sequence[RequestOutput]) -> Sequence[RequestOutput]:
        """Those of `outputs` whose latencies belong to the slice: all, or those begun and ended within it."""
        if self.methodology != "windowed":
            return outputs
        return [
            output
            for output in outputs
            if output.token_times_s is not None
            and self.start_s <= output.started_s
            and output.token_times_s[-1] <= self.end_s
        ]

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


def measurement_slice(config: ExperimentConfig, window: Window) -> MeasurementSlice:
    """Find the part of `window` that counts, its tokens and its energy.

    Raises:
        ExperimentError: Nothing was produced in it, or it cannot be told apart.
    """
    energy = window.energy
    limits = slice_limits(config.measurement, window)
    if limits is None:
        methodology: Methodology = "steady_state" if config.warmup.enabled else "total"
        return MeasurementSlice(methodology, energy.start_s, energy.end_s, count_tokens(window.outputs), energy)
    start_s, end_s = limits
    tokens = count_tokens_between(window.outputs, start_s, end_s)
    return MeasurementSlice("windowed", start_s, end_s, tokens, energy_between(energy, start_s, end_s))


def slice_limits(config: MeasurementConfig, window: Window) -> Span | None:
    """Start and end of the part of `window` that counts, on the measurement clock in seconds; `None`: all of it.

    Raises:
        ExperimentError: Nothing is left of it, or it cannot be told apart.
    """
    if not (config.skip_first_seconds or config.skip_last_seconds or config.full_batch_only):
        return None
    start_s = window.energy.start_s + (config.skip_first_seconds or 0.0)
    end_s = window.energy.end_s - (config.skip_last_seconds or 0.0)
    if config.full_batch_only:
        full_s, drained_s = full_batch_interval(window.outputs, window.steps)
        start_s, end_s = max(start_s, full_s), min(end_s, drained_s)
    if end_s <= start_s:
        raise ExperimentError(
            f"nothing is left of the window of {duration(window.energy.duration_sec)} after "
            f"measurement.skip_first_seconds = {config.skip_first_seconds or 0:g}, "
            f"skip_last_seconds = {config.skip_last_seconds or 0:g} and "
            f"full_batch_only = {str(config.full_batch_only).lower()}; measure for longer or skip less."
        )
    return start_s, end_s
