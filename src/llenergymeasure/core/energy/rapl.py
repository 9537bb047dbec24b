"""Energy of CPU packages and memory from RAPL, the processor's own counters, as Linux shows them in its powercap tree.

Counters wrap (after minutes to hours at full power) and are therefore read often enough, by a sampler, to see every
wrap; a step that no processor could draw in its time is a counter that was reset or jumped, and gives no joules. What
is counted: each package once, whatever driver shows it (`intel-rapl:0` and `intel-rapl-mmio:0` may be the same
package), and its `dram` domain. `psys` (the whole platform) and the parts of a package are left out: they would count
the same joules twice. So would the dies of a package that each show the counter of the whole: whether two counters are
one is told from their readings, since names do not tell.

    die 0     o------o------o          read in turn, twice: of one counter, each reading lies between those
    die 1        o------o------o       before and after it; two counters that have always done so are one
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Final, Literal

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.telemetry import Telemetry, TelemetrySample
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.driver import CPU_DEVICE
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

MAX_PACKAGE_POWER_W: Final = 2000.0
"""More than any package draws; with a counter's range it says how soon the counter can wrap."""

READS_PER_WRAP: Final = 4
"""Readings taken at least between two wraps at that power."""

UPDATE_S: Final = 0.001
"""Time between two updates of the counters (Intel SDM vol. 3B, "RAPL interfaces")."""

LATE_S: Final = 0.1
"""By how much the time between two readings may be longer than it was found to be: a busy machine reads late."""

ABSURD_FACTOR: Final = 3.0
"""A step above this many times what the processor itself calls its limit is none: bursts reach about twice that."""

MIRROR_TRIES: Final = 30
"""So often, an update apart, two counters are read around each other before they count as two, where they are hardly
apart: a value may change just between their readings."""

NEAR_J: Final = MAX_PACKAGE_POWER_W * LATE_S
"""Counters that are farther apart than this are two: between two readings no value moves that far."""

PROOF_S: Final = 0.1
"""Length of the trial that proves availability."""

Kind = Literal["package", "dram"]


@dataclass(frozen=True, slots=True)
class RaplDomain:
    """One counter of the powercap tree, e.g. `package-0` or `package-0 dram`.

    Args:
        range_j: At which it wraps; `None`: not told.
        max_power_w: More than it can count in a second.
    """

    name: str
    kind: Kind
    path: Path
    range_j: float | None
    max_power_w: float = MAX_PACKAGE_POWER_W

    def read_j(self) -> float:
        """The counter, in joules; an `EnergyError` where it cannot be read: on most systems only root may."""
        return _read_number(self.path / "energy_uj") / 1e6

    def step_j(self, earlier_j: float, later_j: float) -> float:
        """What it counted between two readings, a wrap included; infinite where it can only have been reset."""
        step_j = later_j - earlier_j
        if step_j < 0:
            step_j += -math.inf if self.range_j is None else self.range_j
        return step_j if step_j >= 0 else math.inf

    def believable_step_j(self, earlier_j: float, later_j: float, seconds: float) -> float:
        """The same; an `EnergyError` where nothing draws so much in so many seconds."""
        step_j = self.step_j(earlier_j, later_j)
        if step_j > self.max_power_w * (seconds + LATE_S):
            raise EnergyError(
                f"the RAPL counter {self.name} went from {earlier_j:.3f} J to {later_j:.3f} J in {seconds:.3f} s, more "
                f"than {self.max_power_w:.0f} W explain: it was reset or jumped"
            )
        return step_j


@dataclass(frozen=True, slots=True)
class HostEnergy:
    """Joules that the host's counters have seen by some moment, one by one and together."""

    time_s: float
    counted_j: tuple[float, ...]
    reader: RaplReader

    @property
    def package_j(self) -> float:
        """Those of the packages."""
        return self._sum("package")

    @property
    def dram_j(self) -> float | None:
        """Those of the memory; `None` where no package counts it: a counter of memory that shows nothing is none."""
        return self._sum("dram") or None

    @property
    def total_j(self) -> float:
        """Packages and memory."""
        return self.package_j + (self.dram_j or 0.0)

    def since(self, earlier: HostEnergy) -> HostEnergy:
        """What flowed between two readings, at the time of the later one."""
        flowed_j = tuple(now_j - then_j for now_j, then_j in zip(self.counted_j, earlier.counted_j, strict=True))
        return HostEnergy(self.time_s, flowed_j, self.reader)

    def still(self) -> Iterator[MeasurementWarning]:
        """One warning for each package that has counted nothing while others have."""
        for domain, counted_j in self._counters():
            if domain.kind == "package" and counted_j == 0:
                text = f"the RAPL counter {domain.name} stood still over the whole window: CPU energy lacks its joules"
                yield MeasurementWarning(WarningCode.TELEMETRY_UNAVAILABLE, text)

    def _sum(self, kind: Kind) -> float:
        return math.fsum(counted_j for domain, counted_j in self._counters() if domain.kind == kind)

    def _counters(self) -> Iterator[tuple[RaplDomain, float]]:
        """Each counter once, by all that its readings have told so far."""
        return compress(zip(self.reader.domains, self.counted_j, strict=True), self.reader.distinct())


def find_domains(root: Path) -> tuple[RaplDomain, ...]:
    """The packages of this machine and their memory, from the powercap tree at `root`; each by one driver only.

    Raises:
        EnergyError: There is none, or it cannot be read.
    """
    zones = {path.name: path for depth in ("*:*", "*/*:*", "*/*/*:*") for path in sorted(root.glob(depth))}
    # Sorted so that of two drivers' views of one package `intel-rapl` comes before `intel-rapl-mmio`.
    named = sorted((zone, path, _read_text(path / "name")) for zone, path in zones.items() if (path / "name").exists())
    named.sort(key=lambda entry: "mmio" in entry[0])
    package_of = {zone: name for zone, _path, name in named if name.startswith("package-")}
    found: list[RaplDomain] = []
    driver_of: dict[str, str] = {}
    for zone, path, name in named:
        owner = package_of.get(zone.rsplit(":", 1)[0])
        if zone not in package_of and (name != "dram" or owner is None):
            continue
        kind: Kind = "package" if zone in package_of else "dram"
        label, driver = name if kind == "package" else f"{owner} dram", zone.partition(":")[0]
        if driver_of.setdefault(label, driver) == driver:
            found.append(RaplDomain(label, kind, path, _range_j(path), _max_power_w(path)))
    if not any(domain.kind == "package" for domain in found):
        raise EnergyError(f"this machine shows no RAPL counters (nothing called package-* under {root})")
    return tuple(found)


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
                self._counted_j[i] += domain.believable_step_j(earlier_j[i], raw_j[i], seconds)
        except EnergyError as error:
            self._problem = self._problem or str(error)
        return HostEnergy(now_s, tuple(self._counted_j), self)

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
        unmeasured = EnergyMeasurement(start_s, end_s, telemetry=telemetry, meter=self.name)
        if isinstance(read, str):
            return replace(unmeasured, notes=(MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, read),))
        return replace(
            unmeasured,
            total_j=read.total_j,
            method="hardware_counter",
            scope="cpu_package" if read.dram_j is None else "cpu_package_and_dram",
            cpu_j=read.package_j,
            dram_j=read.dram_j,
            counter_j=read.total_j,
            components=_error_budget(read.total_j, end_s - start_s, self._options.power_gain_uncertainty_pct),
            notes=tuple(read.still()),
        )

    def warnings(self, telemetry: Telemetry | None = None) -> tuple[MeasurementWarning, ...]:
        """None: what fails is told by `measurement`."""
        return ()


def _error_budget(total_j: float, duration_s: float, gain_pct: float) -> tuple[BudgetComponent, BudgetComponent]:
    return (
        BudgetComponent(
            name="gain",
            kind="gain",
            half_width_j=gain_pct / 100 * total_j,
            note="how far RAPL as a whole may be off, as configured",
        ),
        BudgetComponent(
            name="counter",
            kind="counter_resolution",
            half_width_j=2 * UPDATE_S * total_j / max(duration_s, UPDATE_S),
            note="one counter update at each edge of the window",
        ),
    )


def _range_j(zone: Path) -> float | None:
    """`None` for 0 as well, which says as little."""
    range_uj = _read_number(zone / "max_energy_range_uj")
    return range_uj / 1e6 if range_uj > 0 else None


def _max_power_w(zone: Path) -> float:
    """By the limits that the processor has and is set to, where the tree shows them."""
    limits_w = []
    for path in (*zone.glob("constraint_*_max_power_uw"), *zone.glob("constraint_*_power_limit_uw")):
        with contextlib.suppress(EnergyError):  # not every constraint has a limit to show
            limits_w.append(_read_number(path) / 1e6)
    highest_w = max(limits_w, default=0.0)
    return min(MAX_PACKAGE_POWER_W, ABSURD_FACTOR * highest_w) if highest_w > 0 else MAX_PACKAGE_POWER_W


def _read_number(path: Path) -> int:
    text = _read_text(path)
    try:
        return int(text)
    except ValueError as error:
        raise EnergyError(f"{path} holds {text!r} where a number is expected") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise EnergyError(
            f"{path} may not be read by this user. Allow it until the next boot with: "
            f"sudo chmod a+r {path.parent.parent}/*/energy_uj {path.parent.parent}/*/*/energy_uj"
        ) from error
    except OSError as error:
        raise EnergyError(f"{path} cannot be read: {error.strerror or error}") from error
