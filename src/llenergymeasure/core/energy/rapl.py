"""Energy of CPU packages and memory from RAPL, the processor's own counters, as Linux shows them in its powercap tree.

Counters wrap (after minutes to hours at full power) and are therefore read often enough, by a sampler, to see every
wrap. What is counted: each package once, whatever driver shows it (`intel-rapl:0` and `intel-rapl-mmio:0` may
be the same package), and its `dram` domain. `psys` (the whole platform) and the parts of a package are left out: they
would count the same joules twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

PROOF_S: Final = 0.1
"""Length of the trial that proves availability."""

Kind = Literal["package", "dram"]


@dataclass(frozen=True, slots=True)
class RaplDomain:
    """One counter of the powercap tree, e.g. `package-0` or `package-0 dram`; it wraps at `range_j`."""

    name: str
    kind: Kind
    path: Path
    range_j: float

    def read_j(self) -> float:
        """The counter, in joules; an `EnergyError` where it cannot be read: on most systems only root may."""
        return _read_number(self.path / "energy_uj") / 1e6


@dataclass(frozen=True, slots=True)
class HostEnergy:
    """Joules that the host's counters have seen by some moment; `None` for memory where no package counts it."""

    time_s: float
    package_j: float
    dram_j: float | None

    @property
    def total_j(self) -> float:
        """Packages and memory."""
        return self.package_j + (self.dram_j or 0.0)

    def since(self, earlier: HostEnergy) -> HostEnergy:
        """What flowed between two readings, at the time of the later one; memory that counts nothing is not counted."""
        dram_j = None if self.dram_j is None or earlier.dram_j is None else self.dram_j - earlier.dram_j
        return HostEnergy(self.time_s, self.package_j - earlier.package_j, dram_j or None)


def find_domains(root: Path) -> tuple[RaplDomain, ...]:
    """The packages of this machine and their memory, each once, from the powercap tree at `root`.

    Raises:
        EnergyError: There is none, or it cannot be read.
    """
    zones = {path.name: path for depth in ("*:*", "*/*:*", "*/*/*:*") for path in sorted(root.glob(depth))}
    # Sorted so that of two drivers' views of one package `intel-rapl` comes before `intel-rapl-mmio`.
    named = sorted((zone, path, _read_text(path / "name")) for zone, path in zones.items() if (path / "name").exists())
    named.sort(key=lambda entry: "mmio" in entry[0])
    package_of = {zone: name for zone, _path, name in named if name.startswith("package-")}
    found: dict[str, RaplDomain] = {}
    for zone, path, name in named:
        owner = package_of.get(zone.rsplit(":", 1)[0])
        if zone in package_of:
            found.setdefault(name, RaplDomain(name, "package", path, _range_j(path)))
        elif name == "dram" and owner is not None:
            found.setdefault(f"{owner} dram", RaplDomain(f"{owner} dram", "dram", path, _range_j(path)))
    if not any(domain.kind == "package" for domain in found.values()):
        raise EnergyError(f"this machine shows no RAPL counters (nothing called package-* under {root})")
    return tuple(found.values())


class RaplReader:
    """Adds up RAPL counters over their wraps from now on, as often as it is read; a `DeviceReader`."""

    device = CPU_DEVICE

    def __init__(self, domains: Sequence[RaplDomain], clock: Clock) -> None:
        self._domains = domains
        self._clock = clock
        self._lock = threading.Lock()
        self._raw_j = [domain.read_j() for domain in self._domains]
        self._counted_j = [0.0] * len(self._domains)
        self._previous: HostEnergy | None = None
        self._problem: str | None = None
        self.longest_interval_s = min(domain.range_j for domain in domains) / MAX_PACKAGE_POWER_W / READS_PER_WRAP

    def mark(self) -> HostEnergy:
        """Read all counters now: tens of microseconds each.

        Raises:
            EnergyError: A counter cannot be read, or could not at some time before: it may have wrapped unseen.
        """
        with self._lock:
            energy = self._update()
            if self._problem is not None:
                raise EnergyError(self._problem)
        return energy

    def read(self) -> TelemetrySample:
        """Mean power since the reading before, at the middle of that time."""
        with self._lock:
            try:
                now = self._update()
            except EnergyError as error:
                self._problem = self._problem or str(error)
                return TelemetrySample(self._clock.now(), None)
            before, self._previous = self._previous, now
        if before is None or now.time_s <= before.time_s:
            return TelemetrySample(now.time_s, None)
        power_w = now.since(before).total_j / (now.time_s - before.time_s)
        return TelemetrySample((before.time_s + now.time_s) / 2, power_w, power_source="rapl")

    def problems(self) -> Sequence[str]:
        """Why counting failed, if it did."""
        return () if self._problem is None else (self._problem,)

    def _update(self) -> HostEnergy:
        for i, domain in enumerate(self._domains):
            raw_j = domain.read_j()
            self._counted_j[i] += (raw_j - self._raw_j[i]) % domain.range_j
            self._raw_j[i] = raw_j
        return HostEnergy(self._clock.now(), self._sum("package") or 0.0, self._sum("dram"))

    def _sum(self, kind: Kind) -> float | None:
        parts = [counted for domain, counted in zip(self._domains, self._counted_j, strict=True) if domain.kind == kind]
        return sum(parts) if parts else None


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


def _range_j(zone: Path) -> float:
    return _read_number(zone / "max_energy_range_uj") / 1e6


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
