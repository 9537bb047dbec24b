"""Stand-ins for what lies outside the measuring code: time, an engine, a meter. They play by the protocols' rules."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    LoadedModel,
    MemoryStats,
    RequestOutput,
    Specialisation,
)
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.core.model.parameters import ParameterCount

PREPARES_NOTHING = Specialisation(meetings=0)
EPOCH = datetime(2026, 2, 18, 14, 30, 5, tzinfo=timezone.utc)


class VirtualClock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += max(0.0, seconds)

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=self.time_s - 1000.0)


@dataclass
class ConstantMeter:
    """A meter of a machine that draws the same power all the time.

    Args:
        clock: The clock of the experiment.
        power_w: What each device draws, in watts.
        devices: GPUs it measures; `("cpu",)` for the processor.
    """

    clock: VirtualClock
    power_w: float = 100.0
    devices: tuple[DeviceId, ...] = ("GPU-0",)
    name: str = "constant"
    open_windows: int = 0

    def is_available(self) -> bool:
        return True

    def start_tracking(self) -> TrackingHandle:
        self.open_windows += 1
        return TrackingHandle(start_s=self.clock.now())

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        self.open_windows -= 1
        end_s = self.clock.now()
        each_j = self.power_w * (end_s - handle.start_s)
        return EnergyMeasurement(
            start_s=handle.start_s,
            end_s=end_s,
            total_j=each_j * len(self.devices),
            method="hardware_counter",
            scope="cpu_package" if self.devices == (CPU_DEVICE,) else "gpu",
            per_gpu_j={} if self.devices == (CPU_DEVICE,) else dict.fromkeys(self.devices, each_j),
            meter="constant",
        )


@dataclass
class StepEngine:
    """An engine whose every decoding step takes the same time; it writes down what was asked of it.

    Args:
        clock: The clock of the experiment.
        step_s: Seconds per generated token.
        batch_size: Requests it takes at once.
        used_devices: The devices it uses.
        specialisation: What it says of itself; it really prepares nothing.
    """

    clock: VirtualClock
    step_s: float = 0.01
    batch_size: int | None = 1
    used_devices: tuple[DeviceId, ...] = ("GPU-0",)
    planned_devices: tuple[DeviceId, ...] | None = None
    fail_on: Callable[[Sequence[GenerationRequest]], Exception | None] = lambda _: None
    name: str = "pytorch"
    specialisation: Specialisation = PREPARES_NOTHING
    calls: list[str] = field(default_factory=list)
    batches: list[list[GenerationRequest]] = field(default_factory=list)

    def version(self) -> str:
        return "0.0"

    def preflight(self, config: ExperimentConfig) -> Sequence[str]:
        return ()

    def plan_devices(self, config: ExperimentConfig) -> tuple[DeviceId, ...]:
        return self.planned_devices or self.used_devices

    def tokenizer(self, config: ExperimentConfig) -> ByteTokenizer:
        return ByteTokenizer()

    def load(self, config: ExperimentConfig) -> None:
        self.calls.append("load")

    def devices(self) -> tuple[DeviceId, ...]:
        return self.used_devices

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        self.calls.append("generate")
        error = self.fail_on(requests)
        if error is not None:
            raise error
        self.batches.append(list(requests))
        started_s = self.clock.now()
        outputs = []
        for request in requests:
            times = array("d", (started_s + (i + 1) * self.step_s for i in range(request.max_new_tokens)))
            outputs.append(
                RequestOutput(
                    index=request.index,
                    input_tokens=len(request.token_ids),
                    token_ids=array("i", [7] * request.max_new_tokens),
                    finish_reason="length",
                    started_s=started_s,
                    token_times_s=times,
                )
            )
        self.clock.sleep(self.step_s * max(request.max_new_tokens for request in requests))
        return GenerationOutput(tuple(outputs))

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def reset_peak_memory(self) -> None:
        self.calls.append("reset_peak_memory")

    def memory(self) -> MemoryStats:
        return MemoryStats(peak_mb=100.0, model_mb=50.0)

    def describe(self) -> LoadedModel:
        return LoadedModel(
            parameters=ParameterCount(1_000_000, "high", ""),
            device_names=("Fake GPU",),
            specialisation=self.specialisation,
        )

    def unload(self) -> None:
        self.calls.append("unload")


class ByteTokenizer:
    """One token per byte, after a BOS."""

    vocab_size = 257
    special_ids = frozenset({256})

    def encode(self, text: str) -> list[int]:
        return [256, *text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def requests(count: int, *, tokens: int = 8, prompt: int = 4) -> list[GenerationRequest]:
    """`count` requests of `prompt` input ids that generate `tokens` each."""
    return [GenerationRequest(i, tuple(range(prompt)), tokens) for i in range(count)]
