"""One meter: how a window is opened and closed, whoever counts its joules.

    start_tracking                      window                                        stop_tracking
    sampler starts, `strategy.before`   [ start_s <---------------------> end_s ]     `strategy.after`, sampler stops,
                                                                                      `strategy.measurement`

What is read before and after is the strategy's business; nothing of it runs inside the window. Beside it, a meter of
GPUs may carry the joules of CPU packages and memory, which are told next to its own and never in them; their counters
are read right after the window opens and right before it closes: tens of microseconds inside it, twice. No thread is
left behind, whatever happens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.powercap import find_domains
from llenergymeasure.core.energy.rapl import HostEnergy, RaplReader
from llenergymeasure.core.energy.sampler import DeviceReader, PowerSampler
from llenergymeasure.core.energy.telemetry import Telemetry
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)

HOST_INTERVAL_S: Final = 1.0
"""Time between readings of the host's counters that only serve to see them wrap."""


class Strategy(Protocol):
    """What one kind of meter does around a window; `Meter` decides when."""

    @property
    def name(self) -> str:
        """The name a config uses for it."""

    @property
    def tells_host(self) -> bool:
        """Whether it has joules of CPU and memory of its own."""

    def prove(self, trial: Callable[[float], EnergyMeasurement]) -> str:
        """Take a reading and describe it in a few words, e.g. `GPU 0 draws 61.2 W now`.

        Args:
            trial: Measures a window of so many seconds, for strategies that have no other reading.

        Raises:
            EnergyError: There is none to be had; the message says why and what to do.
        """

    def readers(self) -> Sequence[DeviceReader]:
        """What is sampled from before the window to after it; empty: nothing is."""

    def before(self) -> Any:
        """Read what is to be read right before the window; returns what `after` needs.

        Raises:
            EnergyError: No window can be opened.
        """

    def after(self, before: Any) -> Any:
        """Read what is to be read right after the window; returns what `measurement` needs."""

    def measurement(self, start_s: float, end_s: float, read: Any, telemetry: Telemetry | None) -> EnergyMeasurement:
        """What flowed from `start_s` to `end_s`, by what `after` returned and what was sampled."""

    def warnings(self, telemetry: Telemetry | None = None) -> Iterable[MeasurementWarning]:
        """What about devices and sampling makes a figure doubtful; asked before a window, and after it with samples."""


@dataclass(frozen=True, slots=True)
class _Host:
    """The host's counters beside a window, and what they showed when it opened, or why that is not known."""

    reader: RaplReader
    sampler: PowerSampler
    first: HostEnergy | str

    def flowed(self) -> HostEnergy | str:
        """What they have seen since, or why that is not known."""
        last = _marked(self.reader)
        if isinstance(self.first, str) or isinstance(last, str):
            return self.first if isinstance(self.first, str) else str(last)
        flowed = last.since(self.first)
        return flowed if flowed.package_j > 0 else "the RAPL counters stood still"


def _marked(reader: RaplReader) -> HostEnergy | str:
    try:
        return reader.mark()
    except EnergyError as error:
        return str(error)


@dataclass(frozen=True, slots=True)
class _OpenWindow:
    """What it takes to close a window."""

    strategy: Strategy
    before: Any
    warnings: tuple[MeasurementWarning, ...]
    sampler: PowerSampler | None
    host: _Host | str | None


class Meter:
    """An `EnergyBackend` by some strategy.

    Args:
        powercap_root: Where the host's own counters are read beside the strategy; `None`: they are not.
    """

    def __init__(
        self, strategy: Strategy, clock: Clock, options: MeterOptions, powercap_root: Path | None = None
    ) -> None:
        self._strategy = strategy
        self._clock = clock
        self._options = options
        self._powercap_root = powercap_root

    @property
    def name(self) -> str:
        """The strategy's name."""
        return self._strategy.name

    def prove(self) -> str:
        """Take a reading here and now and describe it, see `Strategy.prove`."""
        return self._strategy.prove(Meter(self._strategy, self._clock, self._options)._trial)

    def is_available(self) -> bool:
        """Whether a reading can be had here and now; the reason against it goes to the log."""
        try:
            self.prove()
        except EnergyError as error:
            logger.info("The %s energy backend is not available: %s", self.name, error)
            return False
        return True

    def start_tracking(self) -> TrackingHandle:
        """Open a window; without the host's counters, where those fail.

        Raises:
            EnergyError: Its sampler could not start, or its strategy could not open it.
        """
        clock, sampler = self._clock, None
        with ExitStack() as unless_opened:
            beside = self._host_reader()
            if isinstance(beside, RaplReader):
                host_sampler = PowerSampler([beside], interval_s=HOST_INTERVAL_S, clock=clock)
                host_sampler.start()
                unless_opened.callback(host_sampler.abort)
            warnings = tuple(self._strategy.warnings())
            if readers := self._strategy.readers():
                interval_s, spill_dir = self._options.poll_interval_s, self._options.spill_dir
                sampler = PowerSampler(readers, interval_s=interval_s, clock=clock, spill_dir=spill_dir)
                sampler.start()
                unless_opened.callback(sampler.abort)
            before = self._strategy.before()
            unless_opened.callback(self._strategy.after, before)
            start_s = clock.now()
            host = _Host(beside, host_sampler, _marked(beside)) if isinstance(beside, RaplReader) else beside
            unless_opened.pop_all()
        return TrackingHandle(start_s, _OpenWindow(self._strategy, before, warnings, sampler, host))

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close the window and compute what flowed in it."""
        window = handle.state
        if not isinstance(window, _OpenWindow) or window.strategy is not self._strategy:
            raise EnergyError(f"this window was not opened by the {self.name} meter")
        try:
            host = window.host.flowed() if isinstance(window.host, _Host) else window.host
            end_s = self._clock.now()
            read = self._strategy.after(window.before)
            telemetry = None if window.sampler is None else window.sampler.stop(end_s)
        except BaseException:  # Ctrl-C, above all
            if window.sampler is not None:
                window.sampler.abort()
            raise
        finally:
            if isinstance(window.host, _Host):
                window.host.sampler.abort()
        energy = self._strategy.measurement(handle.start_s, end_s, read, telemetry)
        warnings = dict.fromkeys((*window.warnings, *self._strategy.warnings(telemetry)))
        energy = replace(energy, notes=(*energy.notes, *warnings))
        if isinstance(host, str):
            missing = MeasurementWarning(
                WarningCode.TELEMETRY_UNAVAILABLE, f"CPU and memory energy are missing: {host}"
            )
            return replace(energy, notes=(*energy.notes, missing))
        if host is None:
            return energy
        return replace(energy, cpu_j=host.package_j, dram_j=host.dram_j, notes=(*energy.notes, *host.still()))

    def _host_reader(self) -> RaplReader | str | None:
        """What counts the host's joules, or why nothing does; `None`: nobody asked."""
        if self._powercap_root is None:
            return None
        try:
            return RaplReader(find_domains(self._powercap_root), self._clock)
        except EnergyError as error:
            return str(error)

    def _trial(self, seconds: float) -> EnergyMeasurement:
        """A window whose samples nobody needs."""
        handle = self.start_tracking()
        self._clock.sleep(seconds)
        energy = self.stop_tracking(handle)
        energy.close()
        return energy


class NoEnergyBackend:
    """An `EnergyBackend` that times the window and leaves every figure `None`: nobody wants energy, or nothing works.

    Args:
        reason: Why nothing is measured, for the warning; `None` when the user switched energy off, which needs none.
    """

    name = "none"

    def __init__(self, clock: Clock, reason: str | None = None) -> None:
        self._clock = clock
        self._reason = reason

    def is_available(self) -> bool:
        """False: this meter has no sensor."""
        return False

    def start_tracking(self) -> TrackingHandle:
        """Open a window."""
        return TrackingHandle(start_s=self._clock.now())

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close it, without a figure."""
        notes = () if self._reason is None else (MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, self._reason),)
        end_s = self._clock.now()
        return EnergyMeasurement(handle.start_s, end_s, notes=notes, meter=self.name)
