"""The power sampler: one thread that reads every device once per interval, from before the window to after its end.

Deadlines lie on a fixed grid from the start, so that a slow reading delays one sample and not all that follow; rounds
that were due while another was still running are counted as missed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.telemetry import SampledTelemetry, SampleLog, SamplerReport, log_problems
from llenergymeasure.core.energy.types import TelemetrySample
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.exceptions import EnergyError

FIRST_SAMPLE_TIMEOUT_S: Final = 5.0
"""How long `start` waits for the first round. A driver that is loaded on demand takes a second or two to wake."""

LAST_SAMPLE_TIMEOUT_S: Final = 0.5
"""How long `stop` waits for a sample from past the window's end; five updates of any known sensor."""

CLOSING_INTERVAL_S: Final = 0.02
"""Time between rounds while `stop` waits."""

JOIN_TIMEOUT_S: Final = 30.0
"""How long `stop` waits for a thread that hangs inside a driver call."""


class DeviceReader(Protocol):
    """Reads one device."""

    @property
    def device(self) -> DeviceId:
        """Which one."""

    def read(self) -> TelemetrySample:
        """Take one sample; what the device does not answer is `None` in it and told by `problems`."""

    def problems(self) -> Sequence[str]:
        """What went wrong so far, in words, each kind once."""


class PowerSampler:
    """Samples devices in a thread of its own; used once.

    Args:
        readers: One per device.
        interval_s: Time between two rounds, in seconds.
        clock: The measurement clock.
        spill_dir: See `SampleLog`.
    """

    def __init__(
        self, readers: Sequence[DeviceReader], *, interval_s: float, clock: Clock, spill_dir: Path | None = None
    ) -> None:
        self._readers = tuple(readers)
        self._interval_s = interval_s
        self._clock = clock
        self._logs: Mapping[DeviceId, SampleLog] = {reader.device: SampleLog(spill_dir) for reader in readers}
        self._latest_s: dict[DeviceId, float] = {}
        self._first_round = threading.Event()
        self._closing = threading.Event()
        self._give_up = threading.Event()
        self._until_s = 0.0
        self._error: BaseException | None = None
        self._ticks = self._missed = 0
        self._cpu_s = self._longest_tick_s = self._started_s = self._ended_s = 0.0
        # A daemon: a process that ends without `stop` must not wait for it.
        self._thread = threading.Thread(target=self._run, name="llem-power-sampler", daemon=True)

    def start(self) -> None:
        """Start sampling; returns when every device has been read once.

        Raises:
            EnergyError: The first round failed or did not come.
        """
        self._thread.start()
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

    def stop(self, until_s: float) -> SampledTelemetry:
        """Stop once every device has a sample from `until_s` or later, or clearly gives none; the thread has ended.

        Args:
            until_s: The window's end on the measurement clock.
        """
        self._until_s = until_s
        self._closing.set()
        try:
            self._thread.join(JOIN_TIMEOUT_S)
        except BaseException:  # Ctrl-C: leave at once, but leave no thread
            self.abort()
            raise
        return SampledTelemetry(self._logs, self._report())

    def abort(self) -> None:
        """Stop at once and forget the samples."""
        self._give_up.set()
        self._closing.set()
        self._thread.join(JOIN_TIMEOUT_S)
        if not self._thread.is_alive():
            for log in self._logs.values():
                log.close()

    def _run(self) -> None:
        self._started_s = self._clock.now()
        cpu_before_s = time.thread_time()
        try:
            self._sample_until_closed()
        except BaseException as error:  # noqa: BLE001 - a thread has no caller; `start` and the report pass it on
            self._error = error
        finally:
            self._cpu_s = time.thread_time() - cpu_before_s
            self._ended_s = self._clock.now()
            self._first_round.set()

    def _sample_until_closed(self) -> None:
        deadline_s = self._started_s
        while not self._closing.is_set():
            self._tick()
            self._first_round.set()
            deadline_s, missed = next_deadline(deadline_s, self._interval_s, self._clock.now())
            self._missed += missed
            self._closing.wait(max(0.0, deadline_s - self._clock.now()))
        give_up_s = self._clock.now() + LAST_SAMPLE_TIMEOUT_S
        while not self._give_up.is_set():
            self._tick()
            if self._has_samples_past_end() or self._clock.now() >= give_up_s:
                break
            self._give_up.wait(CLOSING_INTERVAL_S)

    def _tick(self) -> None:
        before_s = self._clock.now()
        for reader in self._readers:
            sample = reader.read()
            self._logs[reader.device].append(sample)
            if sample.power_w is not None:
                self._latest_s[reader.device] = sample.time_s
        self._ticks += 1
        self._longest_tick_s = max(self._longest_tick_s, self._clock.now() - before_s)

    def _has_samples_past_end(self) -> bool:
        """Whether every device that still answers has been seen past the end; the silent ones are not waited for."""
        return all(
            latest_s >= self._until_s for device, latest_s in self._latest_s.items() if self._logs[device].lost == 0
        )

    def _report(self) -> SamplerReport:
        problems = [problem for reader in self._readers for problem in reader.problems()]
        problems += log_problems(self._logs)
        if self._error is not None:
            problems.append(f"the power sampler died: {type(self._error).__name__}: {self._error}")
        if self._thread.is_alive():
            problems.append(f"the power sampler hangs in a driver call since more than {JOIN_TIMEOUT_S:g} s")
        return SamplerReport(
            ticks=self._ticks,
            missed_deadlines=self._missed,
            cpu_s=self._cpu_s,
            duration_s=self._ended_s - self._started_s,
            longest_tick_s=self._longest_tick_s,
            problems=tuple(problems),
        )


def next_deadline(deadline_s: float, interval_s: float, now_s: float) -> tuple[float, int]:
    """The next deadline on the grid that is still ahead, and how many were missed on the way.

    Args:
        deadline_s: The deadline of the round that has just been taken.
        interval_s: Spacing of the grid.
        now_s: The current time.
    """
    missed = max(0, int((now_s - deadline_s) / interval_s))
    return deadline_s + (missed + 1) * interval_s, missed
