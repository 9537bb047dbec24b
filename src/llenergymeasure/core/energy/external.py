"""Meters of other packages, by entry point: found by name, and held to what this package's own are held to.

    [project.entry-points."llenergymeasure.energy"]
    wall = "my_package.meter:WallMeter"

The value is called with the devices of a run and the measurement clock, and gives an `EnergyBackend`. What it measures
is believed where it is believable: a figure of 0 J or below, one that is no number, a window on another clock, a method
or scope that nobody knows, or an error while the window is closed each cost the figure and never the run.

Beside it, NVIDIA GPUs are asked once an interval for what is no power: temperature, clocks, memory, throttling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import ClassVar, Final, cast, get_args

from llenergymeasure.config.ssot import ENERGY_BACKENDS, ENERGY_GROUP
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.sampler import GpuReader, sampler_warnings
from llenergymeasure.core.energy.telemetry import Telemetry
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.core.gpu.driver import DeviceId, Gpu
from llenergymeasure.domain.base import EnergyMethod, EnergyScope
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import ENDINGS, EnergyError

MeterFactory = Callable[[Sequence[DeviceId], Clock], EnergyBackend]
"""Makes a meter of the devices of a run (GPU UUIDs, or `("cpu",)`), which stamps its windows with the clock."""

RESERVED: Final = ("auto", *ENERGY_BACKENDS)
"""Names that no other package's meter can have."""

ESTIMATED: Final = MeasurementWarning(
    WarningCode.ENERGY_IS_ESTIMATED, "the meter states that its joules come from a model, not from a sensor"
)


@dataclass(frozen=True, slots=True)
class ExternalStrategy:
    """The meter of another package, whose own instants are the edges of a window.

    Args:
        version: Of that package's distribution.
        gpus: Those of the run that NVML knows.
    """

    name: str
    version: str
    meter: EnergyBackend
    clock: Clock
    options: MeterOptions
    gpus: Sequence[Gpu] = ()
    tells_host: ClassVar = True

    def prove(self, trial: Callable[[float], EnergyMeasurement]) -> str:
        """Have the meter take a reading; tells which version of it did."""
        try:
            available = self.meter.is_available()
        except Exception as error:  # somebody else's code
            raise _failed("cannot be read", error) from error
        if not available:
            raise EnergyError("it has no reading now (is_available() is false); its log says why: --verbose shows it")
        return f"version {self.version} answers"

    def readers(self) -> list[GpuReader]:
        """One per board; its power is the other meter's business."""
        return [GpuReader(gpu, self.clock, power=False) for gpu in self.gpus]

    def before(self) -> TrackingHandle:
        """Have it open a window, on the clock that it was made with."""
        asked_s = self.clock.now()
        try:
            handle = self.meter.start_tracking()
        except Exception as error:
            raise _failed(f"the {self.name} meter could not open a window", error) from error
        if not isinstance(handle, TrackingHandle) or not asked_s <= handle.start_s <= self.clock.now():
            raise EnergyError(
                f"the {self.name} meter opened a window that did not begin now. Its start_tracking() must return a "
                "TrackingHandle whose start_s was read meanwhile from the clock that it was made with."
            )
        return handle

    def after(self, before: TrackingHandle) -> EnergyMeasurement:
        """Have it close the window; what is not believable is not measured, and a note says why."""
        handle, asked_s = before, self.clock.now()
        try:
            energy = self.meter.stop_tracking(handle)
        except Exception as error:  # noqa: BLE001 (somebody else's code; the run itself is not lost with it)
            return self._unmeasured(handle.start_s, asked_s, str(_failed("closing its window failed", error)))
        if not isinstance(energy, EnergyMeasurement):
            return self._unmeasured(handle.start_s, asked_s, f"it gave {type(energy).__name__}, no EnergyMeasurement")
        if energy.start_s != handle.start_s or not asked_s <= energy.end_s <= self.clock.now():
            energy.close()
            return self._unmeasured(handle.start_s, asked_s, "the window that it closed did not end now")
        try:
            problem = next(problems(energy), None)
        except Exception as error:  # noqa: BLE001 (fields that hold something else than they declare)
            problem = str(_failed("its figures are not understood", error))
        if problem is not None:
            energy.close()
            return self._unmeasured(energy.start_s, energy.end_s, problem, energy.notes)
        return self._stated(energy)

    def measurement(
        self, start_s: float, end_s: float, read: EnergyMeasurement, telemetry: Telemetry | None
    ) -> EnergyMeasurement:
        """What it said, with the samples taken beside it unless it has its own."""
        if read.telemetry is None or telemetry is None:
            return replace(read, telemetry=read.telemetry or telemetry)
        telemetry.close()
        return read

    def warnings(self, telemetry: Telemetry | None = None) -> Iterator[MeasurementWarning]:
        """What about the sampler makes its samples doubtful."""
        return iter(()) if telemetry is None else sampler_warnings(telemetry)

    def _unmeasured(
        self, start_s: float, end_s: float, reason: str, notes: tuple[MeasurementWarning, ...] = ()
    ) -> EnergyMeasurement:
        note = MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, f"the {self.name} meter: {reason}")
        return EnergyMeasurement(start_s, end_s, notes=(*notes, note), meter=self.name, meter_version=self.version)

    def _stated(self, energy: EnergyMeasurement) -> EnergyMeasurement:
        """The same under the name that the config has for the meter, with an uncertainty unless it is an estimate."""
        components, notes = energy.components, energy.notes
        if energy.method == "model_estimate":
            notes = notes if any(note.code is ESTIMATED.code for note in notes) else (*notes, ESTIMATED)
        elif energy.total_j is not None and not components:
            components = (self._assumed(energy.total_j),)
        return replace(energy, components=components, notes=notes, meter=self.name, meter_version=self.version)

    def _assumed(self, energy_j: float) -> BudgetComponent:
        """The user's word for a meter that states nothing. How much of it cancels between two runs, nobody knows."""
        share_pct = self.options.power_gain_uncertainty_pct
        return BudgetComponent(
            name="meter",
            kind="sensor",
            half_width_j=energy_j * share_pct / 100.0,
            note=f"{share_pct:g} % of the energy, as configured: the {self.name} meter states no uncertainty",
        )


def problems(energy: EnergyMeasurement) -> Iterator[str]:
    """Why a figure cannot be believed, as far as can be told from it alone."""
    if energy.total_j is None:
        if not energy.notes:
            yield "it gave no figure, and no reason"
        return
    if not math.isfinite(energy.total_j):
        yield f"it gave {energy.total_j} J"
    elif energy.total_j < 0:
        yield f"it gave {energy.total_j:g} J: its counter went backwards"
    elif energy.total_j == 0 and energy.duration_sec > 0:
        yield "it gave 0 J: its reading did not move over the whole window"
    for name, value, known in (("method", energy.method, EnergyMethod), ("scope", energy.scope, EnergyScope)):
        if value not in get_args(known):
            yield f"its {name} is {value!r} and must be one of {', '.join(get_args(known))}"
    beside = {"cpu_j": energy.cpu_j, "dram_j": energy.dram_j}
    for device, joules in (*energy.per_gpu_j.items(), *beside.items()):
        if joules is not None and not (math.isfinite(joules) and joules >= 0):
            yield f"it gave {joules} J for {device}"
    for part in energy.components:
        if not (math.isfinite(part.half_width_j) and part.half_width_j >= 0):
            yield f"it states a half-width of {part.half_width_j} J"


def external_strategy(
    name: str, devices: Sequence[DeviceId], clock: Clock, options: MeterOptions, gpus: Sequence[Gpu] = ()
) -> ExternalStrategy:
    """The meter that another package registered as `name`, not yet proven.

    Raises:
        EnergyError: It is not there, two packages have it, or it is broken; the message says what to do.
    """
    entry, package = _entry(name)
    named = f"{entry.value} of {package}"
    try:
        factory = entry.load()
    except ENDINGS:
        raise
    except BaseException as error:
        raise _failed(f"{named} cannot be imported", error) from error
    if not callable(factory):
        raise EnergyError(f"{named} is no class or function that makes a meter, but {type(factory).__name__}")
    try:
        meter = cast(MeterFactory, factory)(tuple(devices), clock)
    except Exception as error:
        raise _failed(f"{named} could not be set up", error) from error
    missing = [part for part in ("name", "is_available", "start_tracking", "stop_tracking") if not hasattr(meter, part)]
    if missing:
        raise EnergyError(f"{named} makes no EnergyBackend: {type(meter).__name__} has no {', '.join(missing)}")
    return ExternalStrategy(name, package.partition(" ")[2], meter, clock, options, gpus)


def taken_names() -> list[tuple[str, str]]:
    """Names of this package's that others have registered too, in vain, and who did."""
    entries = sorted(metadata.entry_points(group=ENERGY_GROUP), key=lambda entry: entry.name)
    return [(entry.name, _package(entry)) for entry in entries if entry.name in RESERVED]


def _entry(name: str) -> tuple[metadata.EntryPoint, str]:
    """Where the meter is, and the package that has it, with its version."""
    entries = tuple(metadata.entry_points(group=ENERGY_GROUP, name=name))
    packages = sorted(map(_package, entries))
    if not entries:
        raise EnergyError(f"no installed package registers a meter of that name (entry point {ENERGY_GROUP})")
    if len(entries) > 1:
        raise EnergyError(f"{' and '.join(packages)} both register a meter of that name. Uninstall one of them.")
    return entries[0], packages[0]


def _package(entry: metadata.EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _failed(what: str, error: BaseException) -> EnergyError:
    """One kind of error for whatever another package raises; its own words where it speaks of energy."""
    said = str(error) if isinstance(error, EnergyError) else f"{type(error).__name__}: {error}"
    return EnergyError(f"{what}: {said}")
