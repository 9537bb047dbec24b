"""Energy of CPU packages and memory from RAPL, the processor's own counters, as Linux shows them in its powercap tree.

Counters wrap (after minutes to hours at full power) and are therefore read often enough, by a sampler of their own, to
see every wrap. What is counted: each package once, whatever driver shows it (`intel-rapl:0` and `intel-rapl-mmio:0` may
be the same package), and its `dram` domain. `psys` (the whole platform) and the parts of a package are left out: they
would count the same joules twice.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.proof import is_proven
from llenergymeasure.core.energy.sampler import PowerSampler
from llenergymeasure.core.energy.telemetry import SampledTelemetry
from llenergymeasure.core.energy.types import (
    EnergyMeasurement,
    MeterOptions,
    TelemetrySample,
    TrackingHandle,
    UncertaintyComponent,
)
from llenergymeasure.core.gpu.driver import CPU_DEVICE
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

POWERCAP_ROOT: Final = Path("/sys/class/powercap")

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
    """One counter of the powercap tree.

    Args:
        name: For people, e.g. `package-0` or `package-0 dram`.
        kind: What it counts.
        path: Its directory.
        range_j: Where it wraps, in joules.
    """

    name: str
    kind: Kind
    path: Path
    range_j: float

    def read_j(self) -> float:
        """The counter, in joules.

        Raises:
            EnergyError: It cannot be read; on most systems only root may.
        """
        return _read_number(self.path / "energy_uj") / 1e6


@dataclass(frozen=True, slots=True)
class HostEnergy:
    """Joules that the host's counters have seen since the recorder was opened.

    Args:
        time_s: When they were read, on the measurement clock.
        package_j: All packages together.
        dram_j: All memory together; `None` where no package counts its memory.
    """

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


def find_domains(root: Path = POWERCAP_ROOT) -> tuple[RaplDomain, ...]:
    """The packages of this machine and their memory, each once.

    Args:
        root: Root of the powercap tree.

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
            found.setdefault(name, _domain(name, "package", path))
        elif name == "dram" and owner is not None:
            found.setdefault(f"{owner} dram", _domain(f"{owner} dram", "dram", path))
    if not any(domain.kind == "package" for domain in found.values()):
        raise EnergyError(f"this machine shows no RAPL counters (nothing called package-* under {root})")
    return tuple(found.values())


class RaplRecorder:
    """Adds up RAPL counters over their wraps, in a thread, from `open` to `close`; a `DeviceReader` besides.

    Args:
        domains: Counters to follow.
        clock: The measurement clock.
        interval_s: Longest time between two readings, in seconds; shorter where a counter wraps sooner.
        spill_dir: See `SampleLog`.
    """

    device = CPU_DEVICE

    def __init__(
        self, domains: Sequence[RaplDomain], clock: Clock, interval_s: float, spill_dir: Path | None = None
    ) -> None:
        self._domains = tuple(domains)
        self._clock = clock
        self._lock = threading.Lock()
        self._raw_j: list[float] = []
        self._counted_j = [0.0] * len(self._domains)
        self._previous: HostEnergy | None = None
        self._problem: str | None = None
        wrap_s = min(domain.range_j for domain in domains) / MAX_PACKAGE_POWER_W
        self._sampler = PowerSampler(
            [self], interval_s=min(interval_s, wrap_s / READS_PER_WRAP), clock=clock, spill_dir=spill_dir
        )

    def open(self) -> None:
        """Start counting.

        Raises:
            EnergyError: A counter cannot be read.
        """
        with self._lock:
            self._raw_j = [domain.read_j() for domain in self._domains]
        self._sampler.start()

    def mark(self) -> HostEnergy:
        """Read all counters now: tens of microseconds each.

        Raises:
            EnergyError: A counter cannot be read, or could not at some time since `open`: it may have wrapped unseen.
        """
        with self._lock:
            energy = self._update()
            if self._problem is not None:
                raise EnergyError(self._problem)
        return energy

    def close(self, until_s: float) -> SampledTelemetry:
        """Stop counting once there is a power sample from past `until_s`."""
        return self._sampler.stop(until_s)

    def abort(self) -> None:
        """Stop counting at once."""
        self._sampler.abort()

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


class RaplBackend:
    """The meter of a run on the CPU: its packages and their memory.

    Args:
        clock: The measurement clock.
        options: How meters work on this machine.
        root: Root of the powercap tree.
    """

    name = "rapl"

    def __init__(self, clock: Clock, options: MeterOptions, root: Path = POWERCAP_ROOT) -> None:
        self._clock = clock
        self._options = options
        self._root = root

    def prove(self) -> str:
        """Count for a tenth of a second.

        Raises:
            EnergyError: No counters, no permission, or counters that stand still.
        """
        recorder = self._recorder()
        recorder.open()
        try:
            before = recorder.mark()
            self._clock.sleep(PROOF_S)
            after = recorder.mark()
        finally:
            recorder.abort()
        flowed = after.since(before)
        if flowed.package_j <= 0:
            raise EnergyError(f"the RAPL counters under {self._root} stand still")
        watts = flowed.total_j / (after.time_s - before.time_s)
        return f"{'packages' if flowed.dram_j is None else 'packages and memory'} draw {watts:.1f} W now"

    def is_available(self) -> bool:
        """Whether the counters can be read and move."""
        return is_proven(self)

    def start_tracking(self) -> TrackingHandle:
        """Open a window.

        Raises:
            EnergyError: A counter cannot be read.
        """
        recorder = self._recorder()
        recorder.open()
        try:
            first = recorder.mark()
        except BaseException:
            recorder.abort()
            raise
        return TrackingHandle(start_s=self._clock.now(), state=(recorder, first))

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close the window."""
        end_s = self._clock.now()
        if not (isinstance(handle.state, tuple) and isinstance(handle.state[0], RaplRecorder)):
            raise EnergyError("this window was not opened by the RAPL meter")
        recorder, first = handle.state
        flowed: HostEnergy | None = None
        problem = ""
        try:
            flowed = recorder.mark().since(first)
        except EnergyError as error:
            problem = str(error)
        except BaseException:
            recorder.abort()
            raise
        telemetry = recorder.close(end_s)
        if flowed is not None and flowed.package_j <= 0:
            flowed, problem = None, "the RAPL package counters stood still over the whole window"
        if flowed is None:
            return _unavailable(handle.start_s, end_s, telemetry, problem)
        return EnergyMeasurement(
            start_s=handle.start_s,
            end_s=end_s,
            total_j=flowed.total_j,
            method="hardware_counter",
            scope="cpu_package" if flowed.dram_j is None else "cpu_package_and_dram",
            cpu_j=flowed.package_j,
            dram_j=flowed.dram_j,
            counter_j=flowed.total_j,
            components=_error_budget(flowed, end_s - handle.start_s, self._options),
            telemetry=telemetry,
            meter=self.name,
        )

    def _recorder(self) -> RaplRecorder:
        interval_s = self._options.poll_interval_ms / 1000
        return RaplRecorder(find_domains(self._root), self._clock, interval_s, self._options.spill_dir)


def _unavailable(start_s: float, end_s: float, telemetry: SampledTelemetry, problem: str) -> EnergyMeasurement:
    return EnergyMeasurement(
        start_s=start_s,
        end_s=end_s,
        total_j=None,
        method=None,
        scope=None,
        telemetry=telemetry,
        notes=(MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, problem),),
        meter=RaplBackend.name,
    )


def _error_budget(
    flowed: HostEnergy, duration_s: float, options: MeterOptions
) -> tuple[UncertaintyComponent, UncertaintyComponent]:
    edges_j = 2 * UPDATE_S * flowed.total_j / max(duration_s, UPDATE_S)
    return (
        UncertaintyComponent(
            "gain",
            options.power_gain_uncertainty_pct / 100 * flowed.total_j,
            "gain",
            "how far RAPL as a whole may be off, as configured",
        ),
        UncertaintyComponent("counter", edges_j, "counter_resolution", "one counter update at each edge of the window"),
    )


def _domain(name: str, kind: Kind, path: Path) -> RaplDomain:
    return RaplDomain(name, kind, path, _read_number(path / "max_energy_range_uj") / 1e6)


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
