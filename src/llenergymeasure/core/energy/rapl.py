"""Energy of CPU packages and memory from RAPL, the processor's own counters, as powercap.py finds them.

Counters wrap (after minutes to hours at full power) and are therefore read often enough, by a sampler, to see every
wrap; one that was not, and a step that no processor could draw in its time (a counter that was reset or jumped), gives
no joules. A counter that was seen to stand still between its steps may be as late at the window's edges, which is told
and part of the uncertainty. The dies of a package may each show the counter of the whole, whose joules would count
twice: whether two counters are one is told from their readings, since names do not tell.

    die 0     o------o------o          read in turn, twice: of one counter, each reading lies between those
    die 1        o------o------o       before and after it; two counters that have always done so are one
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.host_energy import UPDATE_S, counted_by, host_measurement, stillness
from llenergymeasure.core.energy.powercap import LATE_S, MAX_PACKAGE_POWER_W, RaplDomain, find_domains
from llenergymeasure.core.energy.telemetry import Telemetry, TelemetrySample
from llenergymeasure.core.energy.types import EnergyMeasurement, HostCounter, HostWindow, MeterOptions
from llenergymeasure.core.gpu.driver import CPU_DEVICE
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

READS_PER_WRAP: Final = 4
"""Readings taken at least between two wraps at that power."""

MIRROR_TRIES: Final = 30
"""So often, an update apart, two counters are read around each other before they count as two, where they are hardly
apart: a value may change just between their readings."""

NEAR_J: Final = MAX_PACKAGE_POWER_W * LATE_S
"""Counters that are farther apart than this are two: between two readings no value moves that far."""

PROOF_S: Final = 0.1
"""Length of the trial that proves availability."""


@dataclass(frozen=True, slots=True)
class HostEnergy:
    """Joules that the host's counters have seen by some moment, one by one and together.

    Args:
        still_s: For how long, at most, each was seen not to move since the mark before, in seconds.
    """

    time_s: float
    counted_j: tuple[float, ...]
    reader: RaplReader
    still_s: tuple[float, ...]

    @property
    def late_s(self) -> float:
        """How late a counter of a package that moves may be, by what was seen of it; 0: it moves at every reading."""
        counters = zip(self.reader.domains, self.counted_j, self.still_s, strict=True)
        seen_s = (still_s for domain, counted_j, still_s in counters if domain.kind == "package" and counted_j > 0)
        return max(0.0, max(seen_s, default=0.0) - UPDATE_S)

    @property
    def counters(self) -> tuple[HostCounter, ...]:
        """Each counter once, by all that its readings have told so far."""
        all_j = zip(self.reader.domains, self.counted_j, strict=True)
        own = compress(all_j, self.reader.distinct())
        return tuple(HostCounter(domain.name, domain.kind, counted_j) for domain, counted_j in own)

    @property
    def package_j(self) -> float:
        """Those of the packages."""
        return counted_by(self.counters, "package")

    @property
    def dram_j(self) -> float | None:
        """Those of the memory; `None` where no package counts it: a counter of memory that shows nothing is none."""
        return counted_by(self.counters, "dram") or None

    @property
    def total_j(self) -> float:
        """Packages and memory."""
        return self.package_j + (self.dram_j or 0.0)

    def since(self, earlier: HostEnergy) -> HostEnergy:
        """What flowed between two readings, at the time of the later one."""
        flowed_j = tuple(now_j - then_j for now_j, then_j in zip(self.counted_j, earlier.counted_j, strict=True))
        return replace(self, counted_j=flowed_j)

    def still(self) -> Iterator[MeasurementWarning]:
        """Warnings about counters that did not move."""
        return stillness(self.counters, self.late_s)


class RaplReader:
    """Adds up RAPL counters over their wraps from now on, as often as it is read; a `DeviceReader`."""

    device = CPU_DEVICE

    def __init__(self, domains: Sequence[RaplDomain], clock: Clock) -> None:
        self.domains = tuple(domains)
        self._clock = clock
        self._lock = threading.Lock()
        self._alike = {
            (i, j) for j, b in enumerate(domains) for i, a in enumerate(domains[:j])
            if (a.kind, a.range_j) == (b.kind, b.range_j)
        }  # fmt: skip
        self._raw_j = self._read_all()
        self._read_s = clock.now()
        self._counted_j = [0.0] * len(self.domains)
        self._moved_s, self._still_s = [self._read_s] * len(self.domains), [0.0] * len(self.domains)
        self._previous: HostEnergy | None = None
        self._has_told = False
        self._problem: str | None = None
        ranges_j = [domain.range_j for domain in domains if domain.range_j is not None]
        self.longest_interval_s = min(ranges_j, default=math.inf) / MAX_PACKAGE_POWER_W / READS_PER_WRAP

    def mark(self) -> HostEnergy:
        """Read all counters now: tens of microseconds each.

        Raises:
            EnergyError: A counter cannot be read, was reset or jumped, now or at some time before.
        """
        with self._lock:
            energy = self._update()
            if self._problem is not None:
                raise EnergyError(self._problem)
            self._moved_s, self._still_s = [energy.time_s] * len(self.domains), [0.0] * len(self.domains)
        return energy

    def read(self) -> Sequence[TelemetrySample]:
        """Mean power since the reading before, at the middle of that time; the first one also at its beginning.

        A window opens after the first reading, and its trace would begin half of a reading's time too late.
        """
        with self._lock:
            try:
                now = self._update()
            except EnergyError as error:  # it may wrap unseen meanwhile
                self._problem = self._problem or str(error)
            if self._problem is not None:
                return (TelemetrySample(self._clock.now(), None),)
            before, self._previous = self._previous, now
        if before is None or now.time_s <= before.time_s:
            return (TelemetrySample(now.time_s, None),)
        power_w = now.since(before).total_j / (now.time_s - before.time_s)
        times_s = [(before.time_s + now.time_s) / 2]
        if not self._has_told:
            times_s.insert(0, before.time_s)
        self._has_told = True
        return tuple(TelemetrySample(time_s, power_w, power_source="rapl") for time_s in times_s)

    def problems(self) -> Sequence[str]:
        """Why counting failed, if it did."""
        return () if self._problem is None else (self._problem,)

    def distinct(self) -> list[bool]:
        """Of each counter, whether it is more than another view of one before it."""
        mirrors = {later for _, later in self._alike}
        return [place not in mirrors for place in range(len(self.domains))]

    def _update(self) -> HostEnergy:
        raw_j = self._read_all()
        now_s = self._clock.now()
        earlier_j, seconds = self._raw_j, now_s - self._read_s
        self._raw_j, self._read_s = raw_j, now_s
        try:
            for i, domain in enumerate(self.domains):
                step_j = domain.believable_step_j(earlier_j[i], raw_j[i], seconds)
                self._counted_j[i] += step_j
                if step_j > 0:
                    self._moved_s[i] = now_s
                self._still_s[i] = max(self._still_s[i], now_s - self._moved_s[i])
        except EnergyError as error:
            self._problem = self._problem or str(error)
        return HostEnergy(now_s, tuple(self._counted_j), self, tuple(self._still_s))

    def _read_all(self) -> list[float]:
        """Read all counters, and find out which of those that were alike until now are two."""
        for attempt in range(MIRROR_TRIES):
            first_j = [domain.read_j() for domain in self.domains]
            if not self._alike:
                return first_j
            last_j = [domain.read_j() for domain in self.domains]
            apart_j = {(i, j): self._apart_j(i, first_j[i], first_j[j], last_j[i]) for i, j in self._alike}
            allowed_j = NEAR_J if attempt + 1 < MIRROR_TRIES else 0.0
            self._alike -= {pair for pair, gap_j in apart_j.items() if gap_j > allowed_j}
            if not any(apart_j[pair] for pair in self._alike):
                break
            self._clock.sleep(UPDATE_S)
        return last_j

    def _apart_j(self, i: int, first_j: float, between_j: float, last_j: float) -> float:
        """How far a reading taken between two of counter `i` is from being one of it; 0: it can be."""
        domain = self.domains[i]
        if domain.step_j(first_j, between_j) <= domain.step_j(first_j, last_j):
            return 0.0
        return min(domain.step_j(between_j, first_j), domain.step_j(last_j, between_j))


class RaplStrategy:
    """A run on the CPU by its packages and their memory."""

    name = "rapl"
    tells_host = True

    def __init__(self, clock: Clock, options: MeterOptions, root: Path) -> None:
        self._clock = clock
        self._options = options
        self._root = root

    def prove(self, trial: Callable[[float], EnergyMeasurement]) -> str:
        """Count for a tenth of a second; the counters must move."""
        reader = RaplReader(find_domains(self._root), self._clock)
        before = reader.mark()
        self._clock.sleep(PROOF_S)
        flowed = reader.mark().since(before)
        if flowed.package_j <= 0:
            raise EnergyError(f"the RAPL counters under {self._root} stand still")
        watts = flowed.total_j / (flowed.time_s - before.time_s)
        return f"{'packages' if flowed.dram_j is None else 'packages and memory'} draw {watts:.1f} W now"

    def readers(self) -> tuple[RaplReader]:
        """The counters themselves, anew for every window."""
        self._reader = RaplReader(find_domains(self._root), self._clock)
        return (self._reader,)

    def before(self) -> tuple[RaplReader, HostEnergy]:
        """Read the counters that are being sampled."""
        return self._reader, self._reader.mark()

    def after(self, before: tuple[RaplReader, HostEnergy]) -> HostEnergy | str:
        """Read them again: what flowed, or why that is not known."""
        reader, first = before
        try:
            flowed = reader.mark().since(first)
        except EnergyError as error:
            return str(error)
        return flowed if flowed.package_j > 0 else "the RAPL package counters stood still over the whole window"

    def measurement(
        self, start_s: float, end_s: float, read: HostEnergy | str, telemetry: Telemetry | None
    ) -> EnergyMeasurement:
        """Packages and memory together."""
        if isinstance(read, str):
            note = MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, read)
            return EnergyMeasurement(start_s, end_s, telemetry=telemetry, notes=(note,), meter=self.name)
        gain_pct = self._options.power_gain_uncertainty_pct
        return host_measurement(HostWindow(start_s, end_s, read.counters, read.late_s, gain_pct, self.name), telemetry)

    def warnings(self, telemetry: Telemetry | None = None) -> tuple[MeasurementWarning, ...]:
        """None: what fails is told by `measurement`."""
        return ()
