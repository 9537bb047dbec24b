"""The power sampler: one thread that reads every device once per interval, from before the window to after its end.

Deadlines lie on a fixed grid from the start, so that a slow reading delays one sample and not all that follow; rounds
that were due while another was still running are counted as missed. `GpuReader` reads a GPU through its driver: each
reading is a value, or `None` and a reason.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.telemetry import (
    PowerSource,
    SampleLog,
    SamplerReport,
    Telemetry,
    TelemetrySample,
    log_problems,
)
from llenergymeasure.core.gpu.driver import (
    DeviceId,
    Gpu,
    GpuDriverError,
    GpuHandle,
    InvalidReadingError,
    NotSupportedError,
)
from llenergymeasure.core.host.threads import started
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

FIRST_SAMPLE_TIMEOUT_S: Final = 5.0
"""How long `start` waits for the first round. A driver that is loaded on demand takes a second or two to wake."""

LAST_SAMPLE_TIMEOUT_S: Final = 0.5
"""How long `stop` waits for a sample from past the window's end; five updates of any known sensor."""

CLOSING_INTERVAL_S: Final = 0.02
"""Time between rounds while `stop` waits."""

JOIN_TIMEOUT_S: Final = 30.0
"""How long `stop` waits for a thread that hangs inside a driver call."""

MISSED_SHARE: Final = 0.01
"""Share of due readings that may be missed before a warning is worth it."""

ABSURD_FACTOR: Final = 3.0
"""Readings above this many power limits are broken: short spikes reach about twice the limit, superchips' module
readings exceed the GPU's own limit by half."""

ABSURD_POWER_W: Final = 5000.0
"""The same for a board that does not tell its power limit: several times the largest board there is."""

BUFFER_SILENCE_S: Final = 0.25
"""A driver that has taken no sample by itself for so long is asked for its power instead."""

BUFFER_HOLDS_S: Final = 2.0
"""A driver keeps its own samples for at least so long: 120 of them, one every 20 ms (docs/validation/nvidia-h200)."""

BUFFER_AGE_S: Final = (-0.05, BUFFER_HOLDS_S)
"""So old may the newest of the driver's own samples be; otherwise their times are not those of this machine's clock."""

PLAUSIBLE_AGE_S: Final = 10.0
"""A field value older than this is either stale or carries a time stamp that is not wall-clock time."""

_T = TypeVar("_T")

_Power = tuple[float, "float | None", "PowerSource | None"]
"""Time of validity on the measurement clock, watts, and where these came from."""


class DeviceReader(Protocol):
    """Reads one device."""

    @property
    def device(self) -> DeviceId:
        """Which one."""

    @property
    def longest_interval_s(self) -> float:
        """How often it must be read, in seconds, so that nothing is missed."""

    def read(self) -> Sequence[TelemetrySample]:
        """What is new, in order of time; what the device does not answer is `None` in it and told by `problems`."""

    def problems(self) -> Sequence[str]:
        """What went wrong so far, in words, each kind once."""


class PowerSampler:
    """Samples devices in a thread of its own, one round every `interval_s`; used once."""

    def __init__(
        self, readers: Sequence[DeviceReader], *, interval_s: float, clock: Clock, spill_dir: Path | None = None
    ) -> None:
        self._readers = tuple(readers)
        self._interval_s = min(interval_s, *(reader.longest_interval_s for reader in readers))
        self._clock = clock
        self._logs: Mapping[DeviceId, SampleLog] = {reader.device: SampleLog(spill_dir) for reader in readers}
        self._latest_s: dict[DeviceId, float] = {}
        self._first_round = threading.Event()
        self._closing = threading.Event()
        self._give_up = threading.Event()
        self._until_s = 0.0
        self._error: BaseException | None = None
        self._report = SamplerReport()
        # A daemon: a process that ends without `stop` must not wait for it.
        self._thread = threading.Thread(target=self._run, name="llem-power-sampler", daemon=True)

    def start(self) -> None:
        """Start sampling; returns when every device has been read once.

        Raises:
            EnergyError: The first round failed or did not come.
            ExperimentError: The system refuses another thread.
        """
        started(self._thread)
        try:
            arrived = self._first_round.wait(FIRST_SAMPLE_TIMEOUT_S)
        except BaseException:
            self.abort()
            raise
        if self._error is not None:
            raise EnergyError(f"the power sampler failed at its first reading: {self._error}") from self._error
        if not arrived:
            self.abort()
            raise EnergyError(f"the power sampler got no reading within {FIRST_SAMPLE_TIMEOUT_S:g} s")

    def stop(self, until_s: float) -> Telemetry:
        """Stop once every device has a sample from `until_s` or later, or clearly gives none; the thread has ended."""
        self._until_s = until_s
        self._closing.set()
        try:
            self._thread.join(JOIN_TIMEOUT_S)
        except BaseException:  # Ctrl-C: leave at once, but leave no thread
            self.abort()
            raise
        problems = [problem for reader in self._readers for problem in reader.problems()]
        problems += log_problems(self._logs)
        if self._error is not None:
            problems.append(f"the power sampler died: {type(self._error).__name__}: {self._error}")
        if self._thread.is_alive():
            problems.append(f"the power sampler hangs in a driver call since more than {JOIN_TIMEOUT_S:g} s")
        return Telemetry(self._logs, replace(self._report, problems=tuple(problems)))

    def abort(self) -> None:
        """Stop at once and forget the samples."""
        self._give_up.set()
        self._closing.set()
        self._thread.join(JOIN_TIMEOUT_S)
        if not self._thread.is_alive():
            for log in self._logs.values():
                log.close()

    def _run(self) -> None:
        started_s, cpu_before_s = self._clock.now(), time.thread_time()
        try:
            self._sample_until_closed(started_s)
        except BaseException as error:  # noqa: BLE001 - a thread has no caller; `start` and the report pass it on
            self._error = error
        finally:
            self._report.cpu_s = time.thread_time() - cpu_before_s
            self._report.duration_s = self._clock.now() - started_s
            self._first_round.set()

    def _sample_until_closed(self, deadline_s: float) -> None:
        while not self._closing.is_set():
            self._tick()
            self._first_round.set()
            deadline_s, missed = next_deadline(deadline_s, self._interval_s, self._clock.now())
            self._report.missed_deadlines += missed
            self._closing.wait(max(0.0, deadline_s - self._clock.now()))
        give_up_s = self._clock.now() + LAST_SAMPLE_TIMEOUT_S
        while not self._give_up.is_set():
            self._tick()
            # Devices that are silent, or whose samples are lost, are not waited for.
            seen_s = [time_s for device, time_s in self._latest_s.items() if self._logs[device].lost == 0]
            if min(seen_s, default=math.inf) >= self._until_s or self._clock.now() >= give_up_s:
                break
            self._give_up.wait(CLOSING_INTERVAL_S)

    def _tick(self) -> None:
        before_s = self._clock.now()
        for reader in self._readers:
            for sample in reader.read():
                self._logs[reader.device].append(sample)
                if sample.power_w is not None:
                    self._latest_s[reader.device] = sample.time_s
        self._report.ticks += 1
        self._report.longest_tick_s = max(self._report.longest_tick_s, self._clock.now() - before_s)


def next_deadline(deadline_s: float, interval_s: float, now_s: float) -> tuple[float, int]:
    """The deadline on the grid after `deadline_s` that is still ahead, and how many were missed on the way."""
    missed = max(0, int((now_s - deadline_s) / interval_s))
    return deadline_s + (missed + 1) * interval_s, missed


def sampler_warnings(telemetry: Telemetry) -> Iterator[MeasurementWarning]:
    """What about the sampler's own work makes a figure doubtful."""
    report = telemetry.report
    if report is None:
        return
    due = report.ticks + report.missed_deadlines
    if report.missed_deadlines > MISSED_SHARE * due:
        yield MeasurementWarning(
            WarningCode.SAMPLER_DEADLINES_MISSED,
            f"{report.missed_deadlines} of {due} readings were not taken in time (the longest round took "
            f"{1000 * report.longest_tick_s:.0f} ms); figures from the power trace are coarser",
        )
    for problem in report.problems:
        yield MeasurementWarning(WarningCode.TELEMETRY_UNAVAILABLE, problem)
    for device in telemetry.devices:
        if len(sources := sorted(telemetry.power_sources(device))) > 1:
            yield MeasurementWarning(
                WarningCode.TELEMETRY_UNAVAILABLE,
                f"the power samples of {device} come from different readings ({', '.join(sources)}), which look over "
                "different times; the power trace jumps where they meet",
            )


class GpuReader:
    """Reads one device; a `DeviceReader`.

    Power is what the driver has sampled by itself, where that is `buffered` and worth it; otherwise it is asked for. A
    reading that the device does not have is asked for once. Any other failure costs this one value, is told once by
    `problems`, and the reading is tried again next time. Without `power` it is asked for all else.
    """

    def __init__(self, gpu: Gpu, clock: Clock, *, buffered: bool = False, power: bool = True) -> None:
        self._buffered = buffered
        self._asks_power = power
        self.longest_interval_s = BUFFER_HOLDS_S if buffered else math.inf
        self._newest_us: int | None = None  # of the driver's own samples; None: none was seen yet
        self.device: DeviceId = gpu.uuid
        self._handle, self._driver, self._clock = gpu.handle, gpu.driver, clock
        self._failures: Counter[str] = Counter()
        self._first_reason = ""
        self._unsupported: set[str] = set()
        self._trusts_field_time: bool | None = None  # None: no field value seen yet
        self._last_time_s = -math.inf
        allowed_w = gpu.allowed_power_w
        self._absurd_w = ABSURD_FACTOR * allowed_w if allowed_w else ABSURD_POWER_W

    def read(self) -> Sequence[TelemetrySample]:
        """What is new: one sample, or all that the driver has taken since."""
        if not (powers := self._powers()):
            return ()
        driver, ask = self._driver, self._ask
        last_s, last_w, last_source = powers[-1]
        last = TelemetrySample(
            time_s=max(last_s, self._last_time_s),
            power_w=last_w,
            power_source=last_source,
            temperature_c=ask("temperature", driver.temperature_c),
            sm_clock_mhz=ask("SM clock", driver.sm_clock_mhz),
            memory_clock_mhz=ask("memory clock", driver.memory_clock_mhz),
            sm_utilisation_pct=ask("utilisation", driver.sm_utilisation_pct),
            memory_used_mb=ask("memory use", driver.memory_used_mb),
            throttle_reasons=ask("throttle reasons", driver.throttle_reasons),
        )
        earlier = [
            replace(last, time_s=max(time_s, self._last_time_s), power_w=power_w, power_source=source)
            for time_s, power_w, source in powers[:-1]
        ]
        self._last_time_s = last.time_s
        return [*earlier, last]

    def problems(self) -> Sequence[str]:
        """Which readings failed, how often, and why the first one did; one line or none."""
        if not self._failures:
            return ()
        listed = ", ".join(f"{what} ({count} times)" for what, count in self._failures.items())
        return (f"{self.device}: could not be read: {listed}; first because {self._first_reason}",)

    def _powers(self) -> Sequence[_Power]:
        """What the driver has sampled since; where it does not, what it answers now; nothing: wait for the driver."""
        if not self._asks_power:
            return [(self._clock.now(), None, None)]
        taken = self._ask("buffered power", self._taken) if self._buffered else None
        is_silent = not taken and self._clock.now() - self._last_time_s >= BUFFER_SILENCE_S
        return [self._power()] if taken is None or is_silent else taken

    def _taken(self, handle: GpuHandle) -> Sequence[_Power]:
        """The driver's own samples since the last of them that was seen, a few at first."""
        now_us = round(1e6 * self._clock.wall().timestamp())
        if self._newest_us is None or self._newest_us > now_us:  # the first time, or the machine's clock was set back
            self._newest_us = now_us - round(1e6 * BUFFER_SILENCE_S)
        taken = self._driver.buffered_power(handle, self._newest_us)
        answered_s, answered_us = self._clock.now(), 1e6 * self._clock.wall().timestamp()
        powers: list[_Power] = []
        for at_us, watts in taken:
            age_s = 1e-6 * (answered_us - at_us)
            if BUFFER_AGE_S[0] <= age_s <= BUFFER_AGE_S[1]:
                self._newest_us = max(self._newest_us, at_us)
                power_w = self._ask("a sample of the driver's own", partial(self._buffered_w, watts))
                powers += [] if power_w is None else [(answered_s - age_s, power_w, "driver_buffer")]
        if taken and not powers:
            raise InvalidReadingError("none of the driver's own samples has a time and a power that can be")
        return powers

    def _buffered_w(self, power_w: float, _: GpuHandle) -> float:
        return self._believable(power_w)

    def _power(self) -> _Power:
        """Time of validity, watts and their source: the instantaneous field, else `nvmlDeviceGetPowerUsage`."""
        instant = self._ask("instantaneous power", self._instant)
        if instant is not None:
            return instant
        before_s = self._clock.now()
        power_w = self._ask("power", lambda handle: self._believable(self._driver.power_usage_w(handle)))
        after_s = self._clock.now()
        return (before_s + after_s) / 2, power_w, None if power_w is None else "power_usage"

    def _instant(self, handle: GpuHandle) -> tuple[float, float, PowerSource]:
        before_s = self._clock.now()
        reading = self._driver.power_instant(handle)
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

    def _ask(self, what: str, reading: Callable[[GpuHandle], _T]) -> _T | None:
        """The reading, or `None` with the reason kept."""
        if what in self._unsupported:
            return None
        try:
            return reading(self._handle)
        except NotSupportedError:
            self._unsupported.add(what)
        except GpuDriverError as error:
            self._first_reason = self._first_reason or str(error)
            self._failures[what] += 1
        return None
