"""One GPU's power and state through NVML, as the sampler wants it: a value, or `None` and a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.types import PowerSource, TelemetrySample
from llenergymeasure.core.gpu.driver import (
    DeviceId,
    Gpu,
    GpuDriverError,
    GpuHandle,
    InvalidReadingError,
    NotSupportedError,
)

ABSURD_FACTOR: Final = 3.0
"""Readings above this many power limits are broken: short spikes reach about twice the limit, superchips' module
readings exceed the GPU's own limit by half."""

ABSURD_POWER_W: Final = 5000.0
"""The same for a board that does not tell its power limit: several times the largest board there is."""

PLAUSIBLE_AGE_S: Final = 10.0
"""A field value older than this is either stale or carries a time stamp that is not wall-clock time."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _Failures:
    """How often one reading failed, and why at first."""

    first_reason: str
    count: int = 0


class GpuReader:
    """Reads one device; a `DeviceReader`.

    A reading that the device does not have is asked for once. Any other failure costs this one value, is told once by
    `problems`, and the reading is tried again next time.
    """

    def __init__(self, gpu: Gpu, clock: Clock) -> None:
        self.device: DeviceId = gpu.uuid
        self._handle = gpu.handle
        self._nvml = gpu.driver
        self._clock = clock
        self._failures: dict[str, _Failures] = {}
        self._unsupported: set[str] = set()
        self._trusts_field_time: bool | None = None  # None: no field value seen yet
        self._last_time_s = float("-inf")
        self._absurd_w = self._most_believable_power_w()

    def read(self) -> TelemetrySample:
        """Take one sample."""
        time_s, power_w, source = self._power()
        self._last_time_s = time_s = max(time_s, self._last_time_s)
        nvml, ask = self._nvml, self._ask
        return TelemetrySample(
            time_s=time_s,
            power_w=power_w,
            temperature_c=ask("temperature", nvml.temperature_c),
            sm_clock_mhz=ask("SM clock", nvml.sm_clock_mhz),
            memory_clock_mhz=ask("memory clock", nvml.memory_clock_mhz),
            sm_utilisation_pct=ask("utilisation", nvml.sm_utilisation_pct),
            memory_used_mb=ask("memory use", nvml.memory_used_mb),
            throttle_reasons=ask("throttle reasons", nvml.throttle_reasons),
            power_source=source,
        )

    def problems(self) -> Sequence[str]:
        """Which readings failed, how often, and why the first one did; one line or none."""
        if not self._failures:
            return ()
        listed = ", ".join(f"{what} ({failures.count} times)" for what, failures in self._failures.items())
        first = next(iter(self._failures.values()))
        return (f"{self.device}: could not be read: {listed}; first because {first.first_reason}",)

    def _power(self) -> tuple[float, float | None, PowerSource | None]:
        """Time of validity, watts and their source: the instantaneous field, else `nvmlDeviceGetPowerUsage`."""
        instant = self._ask("instantaneous power", self._instant)
        if instant is not None:
            return instant
        before_s = self._clock.now()
        power_w = self._ask("power", lambda handle: self._believable(self._nvml.power_usage_w(handle)))
        after_s = self._clock.now()
        return (before_s + after_s) / 2, power_w, None if power_w is None else "power_usage"

    def _instant(self, handle: GpuHandle) -> tuple[float, float, PowerSource]:
        before_s = self._clock.now()
        reading = self._nvml.power_instant(handle)
        after_s = self._clock.now()
        power_w = self._believable(reading.power_w)
        source: PowerSource = "power_instant" if reading.scope == "gpu" else "power_instant_module"
        age_s = None if reading.wall_time_s is None else self._clock.wall().timestamp() - reading.wall_time_s
        if self._trusts_field_time is None:
            self._trusts_field_time = age_s is not None and abs(age_s) <= PLAUSIBLE_AGE_S
        if not self._trusts_field_time or age_s is None:
            return (before_s + after_s) / 2, power_w, source
        if age_s > PLAUSIBLE_AGE_S:
            raise InvalidReadingError(f"the sensor has shown the same value for {age_s:.0f} s")
        return after_s - max(0.0, age_s), power_w, source

    def _believable(self, power_w: float) -> float:
        if 0.0 < power_w <= self._absurd_w:
            return power_w
        raise InvalidReadingError(f"{power_w:g} W is not a power that this board can draw")

    def _most_believable_power_w(self) -> float:
        limit_w = self._ask("power limit", self._nvml.power_limit_w)
        return ABSURD_FACTOR * limit_w if limit_w else ABSURD_POWER_W

    def _ask(self, what: str, reading: Callable[[GpuHandle], _T]) -> _T | None:
        """The reading, or `None` with the reason kept."""
        if what in self._unsupported:
            return None
        try:
            return reading(self._handle)
        except NotSupportedError:
            self._unsupported.add(what)
        except GpuDriverError as error:
            self._failures.setdefault(what, _Failures(str(error))).count += 1
        return None
