"""The measurement window: what runs between two synchronised instants, and nothing else.

synchronize │ meter opens │ generate, generate, … │ synchronize │ meter closes
            └─ start_s                                          └─ end_s
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from llenergymeasure.core.backends.protocol import GenerationRequest, InferenceBackend, RequestOutput
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.progress import Observer, PromptsDone, StepFinished, StepStarted
from llenergymeasure.protocols import EnergyBackend


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in the measurement window.

    Args:
        outputs: One per request and pass, in order.
        energy: What the meter saw between `energy.start_s` and `energy.end_s`.
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
    wait_for_others: Callable[[], None] | None = None,
) -> Window:
    """Generate for all `requests` while `meter` measures.

    Args:
        engine: The loaded, warmed engine.
        requests: The experiment's requests.
        meter: What measures energy.
        clock: The measurement clock.
        observer: Told after every batch.
        min_duration_s: Whole passes over the requests are added until the window is this long, in seconds.
        wait_for_others: Called right before the window opens: the barrier of a run on several processes.

    Raises:
        BackendError: The engine failed; the meter has been stopped.
    """
    batches = split_into_batches(requests, engine.batch_size)
    outputs: list[RequestOutput] = []
    passes = output_tokens = 0
    observer(StepStarted("measure", len(requests)))
    engine.reset_peak_memory()
    if wait_for_others is not None:
        wait_for_others()
    engine.synchronize()
    handle = meter.start_tracking()
    started_at = clock.wall()
    try:
        while passes == 0 or clock.now() - handle.start_s < min_duration_s:
            for batch in batches:
                produced = engine.generate(batch).requests
                outputs.extend(produced)
                output_tokens += sum(request.output_tokens for request in produced)
                observer(
                    PromptsDone(
                        "measure",
                        len(outputs),
                        (passes + 1) * len(requests),
                        output_tokens,
                        clock.now() - handle.start_s,
                    )
                )
            passes += 1
        engine.synchronize()
    except BaseException:  # the meter's threads must end whatever happened, Ctrl-C included
        _discard(meter.stop_tracking(handle))
        raise
    energy = meter.stop_tracking(handle)
    ended_at = clock.wall()
    speed = output_tokens / energy.duration_sec
    observer(StepFinished("measure", f"{len(outputs)} prompts  [{energy.duration_sec:.1f} s, {speed:.0f} tok/s]"))
    return Window(tuple(outputs), energy, passes, started_at, ended_at)


def split_into_batches(
    requests: Sequence[GenerationRequest], batch_size: int | None
) -> list[Sequence[GenerationRequest]]:
    """The requests in order, `batch_size` at a time; all at once for `None`, where the engine batches by itself."""
    size = batch_size or len(requests)
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def _discard(energy: EnergyMeasurement) -> None:
    if energy.telemetry is not None:
        energy.telemetry.close()
