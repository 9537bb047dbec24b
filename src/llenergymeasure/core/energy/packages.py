"""Packages that measure joules: Zeus and CodeCarbon, which may not be installed and talk while they are imported.

Either reads counters when it opens and closes a window of its own and tells the difference. That is treated like two
readings of our own: checked for zeros, jumps and resets, held against the power samples, and given the uncertainty of a
counter that was read once on each side.

*Zeus*: `ZeusMonitor` windows, by its counter path. Zeus knows GPUs by their place in `CUDA_VISIBLE_DEVICES`, which it
cannot read when it holds UUIDs, and takes to be in NVML's order. It is therefore set up while that variable names every
board that answers by its NVML index; whether it then looks at the right boards is checked by UUID.
Its other path, the integral of power samples, drops equal neighbours and gives 0 J under constant power.

*CodeCarbon*: GPU counters where there are GPUs, a model of CPU and memory power otherwise: memory always, and the CPU
from its load and rated power unless RAPL can be read. Those joules are labelled `model_estimate`. Its offline tracker
is used, writing nothing and asking nobody; only its joules are taken, so the country it wants (for carbon intensity)
does not matter.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import itertools
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.strategies import GpuReadings, GpuStrategy
from llenergymeasure.core.energy.telemetry import Telemetry
from llenergymeasure.core.energy.types import CounterRead, EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.driver import Gpu, all_boards
from llenergymeasure.core.gpu.visible import VISIBLE_DEVICES
from llenergymeasure.core.host.host import installed_version
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import ENDINGS, EnergyError

if TYPE_CHECKING:
    from codecarbon.output_methods.emissions_data import EmissionsData

logger = logging.getLogger(__name__)

JOULES_PER_KWH: Final = 3.6e6

PROOF_S: Final = 0.25
"""Length of the trial window that proves a package: two updates of the energy counter."""

ESTIMATE_PROOF_S: Final = 0.2
"""The same for an estimate."""

ESTIMATED: Final = MeasurementWarning(
    WarningCode.ENERGY_IS_ESTIMATED,
    "CPU and memory energy come from CodeCarbon's model of this machine (rated power and load), not from a sensor; "
    "use them to compare runs on one machine, not to publish joules",
)

NOTHING_ESTIMATED: Final = MeasurementWarning(
    WarningCode.ENERGY_UNAVAILABLE, "CodeCarbon estimated 0 J for CPU and memory: the window was too short"
)


@dataclass(frozen=True, slots=True)
class PackageReading:
    """What a package measured in one of its windows; of each board by its index in NVML's order."""

    per_board_j: Mapping[int, float] = field(default_factory=dict)
    cpu_j: float | None = None
    dram_j: float | None = None
    notes: tuple[MeasurementWarning, ...] = ()


class PackageStrategy(GpuStrategy, ABC):
    """Joules that another package counts; this package's sampler beside it keeps watch."""

    @abstractmethod
    def begin(self, key: str) -> None:
        """Open the package's window called `key`; an `EnergyError` where it fails."""

    @abstractmethod
    def end(self, key: str) -> PackageReading:
        """Close it and tell what flowed; an `EnergyError` where it fails."""

    def prove(self, trial: Callable[[float], EnergyMeasurement]) -> str:
        """Measure a quarter of a second, in which the package's joules must be believable; then watch the counters."""
        energy = trial(PROOF_S)
        if energy.counter_j is None:
            reasons = [note.message for note in energy.notes if note.code is not WarningCode.ENERGY_IS_ESTIMATED]
            raise EnergyError("; ".join(reasons) or f"{self.name} gave no joules")
        self.watch_counters()
        # Joules, not watts: a counter that moves in steps of 0.1 s does not tell the power of so short a time.
        boards = ", ".join(str(gpu.index) for gpu in self._gpus)
        return f"GPU {boards} took {energy.counter_j:.1f} J in {energy.duration_sec:.2f} s"

    def before(self) -> tuple[str, CounterRead]:
        """Open a window of the package, whose counters are taken to stand at 0: it tells only differences."""
        key, asked_s = _new_key(), self._clock.now()
        self.begin(key)
        return key, CounterRead(asked_s, self._clock.now(), 0.0)

    def after(self, before: tuple[str, CounterRead]) -> GpuReadings:
        """Close it. Where the package fails to, the power samples stand in and a note says so."""
        key, opened = before
        asked_s = self._clock.now()
        try:
            reading = self.end(key)
        except EnergyError as error:
            return GpuReadings({}, {}, str(error))
        closed_s = self._clock.now()
        joules = {gpu.uuid: reading.per_board_j[gpu.index] for gpu in self._gpus if gpu.index in reading.per_board_j}
        return GpuReadings(
            before=dict.fromkeys(joules, (opened,)),
            after={device: (CounterRead(asked_s, closed_s, energy_j),) for device, energy_j in joules.items()},
            cpu_j=reading.cpu_j,
            dram_j=reading.dram_j,
            notes=reading.notes,
        )

    def measurement(
        self, start_s: float, end_s: float, read: GpuReadings, telemetry: Telemetry | None
    ) -> EnergyMeasurement:
        """The same as of any counter, and by which version of the package."""
        return replace(
            super().measurement(start_s, end_s, read, telemetry), meter_version=installed_version(self.name) or ""
        )


_window_numbers = itertools.count(1)


def _new_key() -> str:
    """A name for a window that no other one has."""
    return f"llenergymeasure {next(_window_numbers)}"


def require_counters(gpus: Sequence[Gpu], name: str) -> None:
    """Raise an `EnergyError` for a board without a counter: package `name` would integrate in a way of its own."""
    for gpu in gpus:
        if not gpu.has_counter:
            raise EnergyError(f"GPU {gpu.index} has no energy counter for {name} to read; use energy.backend: nvml")


class ZeusStrategy(PackageStrategy):
    """Windows of one `ZeusMonitor`."""

    name = "zeus"

    def __init__(self, gpus: Sequence[Gpu], clock: Clock, options: MeterOptions) -> None:
        super().__init__(gpus, clock, options)
        require_meter_package(self.name)
        require_counters(gpus, self.name)
        driver = gpus[0].driver
        boards = all_boards(driver)
        places = {board.uuid: place for place, board in enumerate(boards)}
        self._indices = {places[gpu.board_uuid]: gpu.index for gpu in gpus}
        self._monitor = _monitor(list(self._indices), [board.index for board in boards])
        seen = self._monitor.gpus.gpus
        for gpu, place in zip(gpus, self._indices, strict=True):
            if place >= len(seen) or driver.uuid(seen[place].handle) != gpu.board_uuid:
                raise EnergyError(  # Zeus keeps its list of GPUs for the life of the process
                    "Zeus was set up earlier in this process for other GPUs and cannot be set up again; start a new "
                    "process, or use energy.backend: nvml"
                )

    def begin(self, key: str) -> None:
        """Open a window of Zeus; the harness has synchronised."""
        with _one_kind_of_error("Zeus", "open a window"):
            self._monitor.begin_window(key, sync_execution=False)

    def end(self, key: str) -> PackageReading:
        """Close it."""
        with _one_kind_of_error("Zeus", "close a window"):
            energy_j = self._monitor.end_window(key, sync_execution=False).gpu_energy
        return PackageReading({self._indices[place]: joules for place, joules in energy_j.items()})


def _monitor(places: Sequence[int], nvml_indices: Sequence[int]) -> Any:
    zeus_monitor = _import_meter_package("zeus.monitor")
    with _one_kind_of_error("Zeus", "start"), _boards_visible(nvml_indices):
        monitor = zeus_monitor.ZeusMonitor(gpu_indices=list(places), cpu_indices=[])
    if monitor.power_monitor is not None:
        raise EnergyError("Zeus would integrate power samples here instead of using the energy counter")
    return monitor


@contextlib.contextmanager
def _boards_visible(nvml_indices: Sequence[int]) -> Iterator[None]:
    """Name these boards by NVML index in `CUDA_VISIBLE_DEVICES` for the length of a `with` block."""
    before = os.environ.get(VISIBLE_DEVICES)
    os.environ[VISIBLE_DEVICES] = ",".join(map(str, nvml_indices))
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE_DEVICES]
        else:
            os.environ[VISIBLE_DEVICES] = before


class CodeCarbonStrategy(PackageStrategy):
    """Tasks of one CodeCarbon tracker per board: a tracker tells only the sum over its GPUs."""

    name = "codecarbon"
    tells_host = True

    def __init__(self, gpus: Sequence[Gpu], clock: Clock, options: MeterOptions) -> None:
        super().__init__(gpus, clock, options)
        require_meter_package(self.name)
        if shutil.which("nvidia-smi") is None:
            raise EnergyError(
                "the codecarbon energy backend finds GPUs by running nvidia-smi, which is not on PATH. "
                "Install the driver's tools, or use energy.backend: nvml."
            )
        require_counters(gpus, self.name)
        self._trackers = {gpu.index: _offline_tracker([gpu.index]) for gpu in gpus}
        self._opened_at_j = dict[str, list[float]]()
        # Their first task sets them up, which takes seconds: that of a window is no more than a reading.
        key = _new_key()
        self.begin(key)
        self.end(key)

    def begin(self, key: str) -> None:
        """Open a task on every tracker."""
        for tracker in self._trackers.values():
            _start_task(tracker, key)

    def end(self, key: str) -> PackageReading:
        """Close them. A board for which CodeCarbon found no sensor has 0 J, which the caller does not believe."""
        closed = {index: _stop_task(tracker, key) for index, tracker in self._trackers.items()}
        host = next(iter(closed.values()))  # every tracker models the same host
        return PackageReading(
            per_board_j={index: emissions.gpu_energy * JOULES_PER_KWH for index, emissions in closed.items()},
            cpu_j=_joules(host.cpu_energy),
            dram_j=_joules(host.ram_energy),
            notes=(ESTIMATED,),
        )

    def before(self) -> tuple[str, CounterRead]:
        """Open a window, after a look at the counters: the time that opening took tells when CodeCarbon read them."""
        totals_j, opened = self.totals_j(), super().before()
        self._opened_at_j[opened[0]] = totals_j
        return opened

    def after(self, before: tuple[str, CounterRead]) -> GpuReadings:
        """Close it. Where it cannot use a counter, CodeCarbon takes a few readings of power, of which it only logs."""
        readings = super().after(before)
        if all(first <= last for first, last in zip(self._opened_at_j.pop(before[0]), self.totals_j(), strict=True)):
            return readings
        return GpuReadings(
            {}, {}, "the energy counter failed or was reset in the window, and CodeCarbon guessed instead"
        )


class CodeCarbonEstimate:
    """The estimate for a run on the CPU."""

    name = "codecarbon"
    tells_host = True

    def __init__(self) -> None:
        self._tracker = _offline_tracker([])

    def prove(self, trial: Callable[[float], EnergyMeasurement]) -> str:
        """Estimate a fifth of a second, which must not be 0 J."""
        energy = trial(ESTIMATE_PROOF_S)
        if energy.total_j is None:
            raise EnergyError("; ".join(note.message for note in energy.notes))
        return f"estimates {energy.total_j / energy.duration_sec:.1f} W now"

    def readers(self) -> tuple[()]:
        """Nothing is sampled."""
        return ()

    def before(self) -> str:
        """Open a task. The first call sets the tracker up, which takes seconds."""
        key = _new_key()
        _start_task(self._tracker, key)
        return key

    def after(self, before: str) -> EmissionsData | str:
        """Close it; or why that failed."""
        try:
            return _stop_task(self._tracker, before)
        except EnergyError as error:
            return str(error)

    def measurement(
        self, start_s: float, end_s: float, read: EmissionsData | str, telemetry: Telemetry | None
    ) -> EnergyMeasurement:
        """CPU and memory as modelled."""
        unknown = EnergyMeasurement(start_s, end_s, meter=self.name, meter_version=installed_version(self.name) or "")
        if isinstance(read, str):
            return replace(unknown, notes=(MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, read),))
        cpu_j, dram_j = _joules(read.cpu_energy), _joules(read.ram_energy)
        if cpu_j is None and dram_j is None:
            return replace(unknown, notes=(NOTHING_ESTIMATED,))
        return replace(
            unknown,
            total_j=(cpu_j or 0.0) + (dram_j or 0.0),
            method="model_estimate",
            scope="machine_model",
            cpu_j=cpu_j,
            dram_j=dram_j,
            notes=(ESTIMATED,),
        )

    def warnings(self, telemetry: Telemetry | None = None) -> tuple[MeasurementWarning, ...]:
        """None but those of `measurement`."""
        return ()


def _joules(kwh: float) -> float | None:
    """Joules, or `None` for CodeCarbon's 0, with which it means "not found" (no part of a machine draws nothing)."""
    return kwh * JOULES_PER_KWH if kwh > 0 else None


def _offline_tracker(nvml_indices: Sequence[int]) -> Any:
    codecarbon = _import_meter_package("codecarbon")
    codecarbon_logger = logging.getLogger("codecarbon")
    codecarbon_logger.setLevel(logging.ERROR)
    with _one_kind_of_error("CodeCarbon", "start"):
        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code="USA",
            force_carbon_intensity_g_co2e_kwh=0.0,  # else a token in its settings has it asked for, in the window
            cloud_provider=None,
            cloud_region=None,
            gpu_ids=list(nvml_indices) or None,
            tracking_mode="machine",
            output_methods=[],
            measure_power_secs=1,
            pue=1.0,
            log_level="error",
            allow_multiple_runs=True,  # the alternative is a lock file and signal handlers
        )
    codecarbon_logger.handlers.clear()  # its own handler writes to the terminal; the program's logging decides instead
    codecarbon_logger.propagate = True
    return tracker


def _start_task(tracker: Any, key: str) -> None:
    with _one_kind_of_error("CodeCarbon", "open a window"):
        tracker.start_task(key)


def _stop_task(tracker: Any, key: str) -> EmissionsData:
    with _one_kind_of_error("CodeCarbon", "close a window"):
        emissions: EmissionsData | None = tracker.stop_task(key)
    if emissions is None:
        raise EnergyError("CodeCarbon lost its measurement task; repeat the run")
    return emissions


@contextlib.contextmanager
def _one_kind_of_error(package: str, doing: str) -> Iterator[None]:
    """These packages raise whatever their parts raise; a caller gets one kind of error."""
    try:
        yield
    except Exception as error:
        raise EnergyError(f"{package} could not {doing}: {type(error).__name__}: {error}") from error


def require_meter_package(package: str) -> None:
    """Raise an `EnergyError` unless a package is installed; its backend and its extra are called the same."""
    if importlib.util.find_spec(package) is None:
        raise EnergyError(
            f"the {package} energy backend needs the package {package}, which is not installed. "
            f'Install it with: pip install "llenergymeasure[{package}]"'
        )


def _import_meter_package(name: str) -> ModuleType:
    """Import a package, or a module of it; what it prints meanwhile goes to the log."""
    require_meter_package(name.partition(".")[0])
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            module = importlib.import_module(name)
    except ENDINGS:
        raise
    except BaseException as error:
        raise EnergyError(f"{name} is installed and cannot be imported: {type(error).__name__}: {error}") from error
    if chatter.getvalue():
        logger.debug("While importing %s: %s", name, chatter.getvalue().strip())
    return module
