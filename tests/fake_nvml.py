"""An NVML made of plain objects, for what is built on the binding; the scripted C library tests the binding itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llenergymeasure.core.gpu.driver import BufferedPower, NotSupportedError, PowerReading


@dataclass(eq=False)
class FakeGpu:
    """A board (or a MIG instance) that answers what it is told; an exception as a value is raised instead.

    `readings` overrides what a method returns: by its name, a value, an exception, or a function without arguments.
    """

    uuid: str
    name: str = "NVIDIA Fake"
    mig: Sequence[FakeGpu] = ()
    readings: Mapping[str, object] = field(default_factory=dict)
    parent: FakeGpu | None = None
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for instance in self.mig:
            instance.parent = self

    def answer(self, method: str, default: object) -> object:
        self.calls.append(method)
        value = self.readings.get(method, default)
        if isinstance(value, Callable):  # type: ignore[arg-type]
            value = value()
        if isinstance(value, BaseException):
            raise value
        return value


class FakeNvml:
    """`GpuDriver` over `FakeGpu`s, which are their own handles."""

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = gpus

    def driver_version(self) -> str:
        return "570.00"

    def device_count(self) -> int:
        return len(self.gpus)

    def device_handle(self, index: int) -> FakeGpu:
        return self.gpus[index].answer("device_handle", self.gpus[index])  # type: ignore[return-value]

    def uuid(self, handle: FakeGpu) -> str:
        return handle.answer("uuid", handle.uuid)  # type: ignore[return-value]

    def name(self, handle: FakeGpu) -> str:
        return handle.name

    def mig_handles(self, handle: FakeGpu) -> tuple[FakeGpu, ...]:
        return tuple(handle.mig)

    def power_instant(self, handle: FakeGpu) -> PowerReading:
        return handle.answer("power_instant", PowerReading(100.0, None, "gpu"))  # type: ignore[return-value]

    def buffered_power(self, handle: FakeGpu, since_us: int) -> tuple[BufferedPower, ...]:
        taken: tuple[BufferedPower, ...] = handle.answer("buffered_power", NotSupportedError("no buffer"))  # type: ignore[assignment]
        return tuple(sample for sample in taken if sample[0] > since_us)

    def __getattr__(self, method: str) -> Callable[[FakeGpu], object]:
        defaults = {
            "power_usage_w": 100.0,
            "total_energy_j": NotSupportedError("no counter"),
            "power_limit_w": 300.0,
            "default_power_limit_w": 300.0,
            "temperature_c": 40.0,
            "sm_clock_mhz": 1500.0,
            "memory_clock_mhz": 2000.0,
            "sm_utilisation_pct": 0.0,
            "memory_used_mb": 1000.0,
            "throttle_reasons": 0,
            "compute_pids": (),
            "persistence_mode": True,
            "energy_includes_module": False,
            "compute_capability": "9.0",
        }
        if method not in defaults:
            raise AttributeError(method)
        return lambda handle: handle.answer(method, defaults[method])
