"""Can this experiment run here? Every reason against it at once, before anything is loaded or waited for.

A check is a function that takes a `Case` and yields findings; `CHECKS` is the list of them. A `Failure` stops the run,
a `MeasurementWarning` goes into the result, an `Advice` into the log.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llenergymeasure.config.dormant import dormant_settings
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import InferenceBackend
from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.core.energy.boards import board_warnings, find_boards
from llenergymeasure.core.energy.calibration import default_calibration_dir, load_calibration
from llenergymeasure.core.energy.select import BackendName, MeterHost, select_energy_backend
from llenergymeasure.core.energy.types import CPU_DEVICE, DeviceId, MeterOptions
from llenergymeasure.core.gpu.driver import GpuDriverError
from llenergymeasure.core.gpu.facts import GpuFacts, free_memory_mb, read_gpu_facts
from llenergymeasure.core.gpu.visible import visible_gpus
from llenergymeasure.core.model.memory import OVERHEAD, estimate_vram
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import BackendError, ConfigError, EnergyError, LLEMError, PreFlightError
from llenergymeasure.security import validate_path

if TYPE_CHECKING:
    from llenergymeasure.config.user_config import UserConfig

logger = logging.getLogger(__name__)

LOW_DISK_SHARE: Final = 0.10
"""Free share of a file system below which a user is told."""

LIMIT_TOLERANCE_W: Final = 1.0
"""A power limit this close below the factory's is the factory's."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A reason why the experiment cannot run, with its fix."""

    text: str


@dataclass(frozen=True, slots=True)
class Advice:
    """Something a user should know that does not touch the figures' meaning."""

    text: str


Finding = Failure | MeasurementWarning | Advice


def _is_writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)


@dataclass(frozen=True, slots=True)
class PreflightHost:
    """This machine as the checks see it; tests pass their own.

    Args:
        environ: Environment of the process.
        meters: Where sensors are found.
        is_writable: Whether this process may create files in a directory.
        disk_usage: Total, used and free bytes of the file system that holds a directory.
        clock: The measurement clock.
        calibration_dir: Where sensor calibrations lie.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    meters: MeterHost = field(default_factory=MeterHost)
    is_writable: Callable[[Path], bool] = _is_writable
    disk_usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage
    clock: Clock = field(default_factory=SystemClock)
    calibration_dir: Path = field(default_factory=default_calibration_dir)


@dataclass(frozen=True, slots=True)
class Case:
    """What is checked, and what it would run on.

    Args:
        config: The experiment.
        machine: The user's settings.
        meter_name: The energy backend that is wanted; `None`: energy is switched off.
        host: The machine.
        engine_problems: What the engine says against the config.
        devices: What the engine would use; empty where it cannot tell because of a problem.
        gpus: Those of the devices that NVML describes.
    """

    config: ExperimentConfig
    machine: UserConfig
    meter_name: BackendName | None
    host: PreflightHost
    engine_problems: tuple[str, ...]
    devices: tuple[DeviceId, ...]
    gpus: tuple[GpuFacts, ...]


@dataclass(frozen=True, slots=True)
class PreFlightReport:
    """What pre-flight found on a machine that can run the experiment."""

    warnings: tuple[MeasurementWarning, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preflight:
    """The pre-flight of a machine, to be called with each experiment.

    Args:
        machine: The user's settings.
        meter_name: The energy backend that is wanted; `None`: energy is switched off.
        host: The machine.
    """

    machine: UserConfig
    meter_name: BackendName | None
    host: PreflightHost = field(default_factory=PreflightHost)

    def __call__(
        self, config: ExperimentConfig, engine: InferenceBackend | BackendError
    ) -> tuple[MeasurementWarning, ...]:
        """Check `config`; what is worth knowing but not fatal is returned, or told in the log.

        Raises:
            PreFlightError: It cannot run here; lists every reason.
        """
        report = run_preflight(config, engine, self.machine, self.meter_name, self.host)
        for advice in report.advice:
            logger.warning("%s", advice)
        return report.warnings


def run_preflight(
    config: ExperimentConfig,
    engine: InferenceBackend | BackendError,
    machine: UserConfig,
    meter_name: BackendName | None,
    host: PreflightHost | None = None,
) -> PreFlightReport:
    """Run all checks.

    Args:
        config: The experiment.
        engine: The engine, not loaded, or why there is none.
        machine: The user's settings.
        meter_name: The energy backend that is wanted; `None`: energy is switched off.
        host: The machine; this one unless given.

    Raises:
        PreFlightError: The experiment cannot run here; lists every reason.
    """
    case = _open_case(config, engine, machine, meter_name, host or PreflightHost())
    findings = [finding for check in CHECKS for finding in check(case)]
    failures = [finding.text for finding in findings if isinstance(finding, Failure)]
    if failures:
        raise PreFlightError(failures)
    return PreFlightReport(
        warnings=tuple(finding for finding in findings if isinstance(finding, MeasurementWarning)),
        advice=tuple(finding.text for finding in findings if isinstance(finding, Advice)),
    )


def _open_case(
    config: ExperimentConfig,
    engine: InferenceBackend | BackendError,
    machine: UserConfig,
    meter_name: BackendName | None,
    host: PreflightHost,
) -> Case:
    devices: tuple[DeviceId, ...] = ()
    if isinstance(engine, BackendError):
        return Case(config, machine, meter_name, host, (str(engine),), devices, ())
    problems = tuple(engine.preflight(config))
    try:
        devices = engine.plan_devices(config)
    except LLEMError as error:  # usually one of the problems already
        if str(error) not in problems:
            problems = (*problems, str(error))
    return Case(config, machine, meter_name, host, problems, devices, _describe(devices, host))


def _describe(devices: tuple[DeviceId, ...], host: PreflightHost) -> tuple[GpuFacts, ...]:
    """What NVML says about the planned GPUs; nothing where it does not answer: the energy check tells of that."""
    if devices in ((), (CPU_DEVICE,)):
        return ()
    try:
        nvml = host.meters.open_nvml()
        boards = {gpu.uuid: gpu.board_uuid for gpu in visible_gpus(host.environ, nvml)}
        return tuple(read_gpu_facts(nvml, uuid, boards.get(uuid, uuid)) for uuid in devices)
    except GpuDriverError as error:
        logger.info("NVML does not describe the GPUs: %s", error)
        return ()


def check_engine(case: Case) -> Iterator[Finding]:
    """Device, packages, model files, and settings that do not work together."""
    yield from map(Failure, case.engine_problems)


def check_runner(case: Case) -> Iterator[Finding]:
    """The runner must be one that this version has."""
    runner = str(getattr(case.machine.runners, case.config.backend))
    if runner != "local":
        kind, name = runner.partition(":")[0], case.config.backend
        yield Failure(
            f"runners.{name}: {runner!r}: the {kind} runner is not supported yet by this version. "
            f"Set runners.{name}: local in the user config, or LLEM_RUNNER_{name.upper()}=local."
        )


def check_dormant_settings(case: Case) -> Iterator[Finding]:
    """What was written and does nothing should not be believed to have done something."""
    yield from (Advice(f"{told}.") for told in dormant_settings(case.config))


def check_dataset(case: Case) -> Iterator[Finding]:
    """The prompts must be readable, and enough of them."""
    try:
        load_raw_prompts(case.config.dataset, case.config.n)
    except ConfigError as error:
        yield Failure(str(error))


def check_memory(case: Case) -> Iterator[Finding]:
    """What must fit into the GPUs' free memory: weights, and the cache of the largest batch where the engine fixes it.

    The estimate's reserve is not a reason to refuse a run that may well fit, so it is only told.
    """
    section = case.config.backend_config
    free_mb = free_memory_mb(case.gpus, one_copy_each=section.processes > 1)
    if free_mb is None:
        return
    cache_home = Path(case.machine.output.model_cache_dir)
    estimate = estimate_vram(case.config, environ=case.host.environ, cache_home=cache_home)
    if estimate.weights_mb is None:
        return
    cache_mb = 0.0 if section.fills_memory else estimate.kv_cache_mb or 0.0
    needed_mb = estimate.weights_mb + cache_mb
    where = ", ".join(dict.fromkeys(gpu.name for gpu in case.gpus))
    if needed_mb > free_mb:
        yield Failure(
            f"GPU memory: the model needs at least {needed_mb / 1000:.1f} GB and {free_mb / 1000:.1f} GB are free on "
            f"{where} ({'; '.join(estimate.notes)}). Use a smaller model or batch, quantise it, or free the GPU."
        )
    elif needed_mb * (1 + OVERHEAD) > free_mb:
        yield Advice(
            f"GPU memory may not suffice: about {needed_mb * (1 + OVERHEAD) / 1000:.1f} GB with a reserve of "
            f"{OVERHEAD:.0%}, and {free_mb / 1000:.1f} GB are free on {where}."
        )


def check_energy(case: Case) -> Iterator[Finding]:
    """An energy backend asked for by name must give a reading now; `auto` takes what there is."""
    if case.meter_name is None or case.meter_name == "auto" or not case.devices:
        return
    try:
        select_energy_backend(
            case.meter_name, case.devices, clock=case.host.clock, options=MeterOptions(), host=case.host.meters
        )
    except LLEMError as error:
        yield Failure(str(error))


def check_output(case: Case) -> Iterator[Finding]:
    """Results must have a place, with room in it."""
    if case.config.output_dir is None:
        return
    try:
        wanted = validate_path(case.config.output_dir, what="output_dir")
    except ConfigError as error:
        yield Failure(str(error))
        return
    existing = next(path for path in (wanted, *wanted.parents) if os.path.exists(path))  # also where one is unreadable
    if not existing.is_dir():
        yield Failure(f"output_dir: {existing} is a file. Choose a directory.")
    elif not case.host.is_writable(existing):
        yield Failure(f"output_dir: {existing} is not writable. Choose a directory you may write to (--output).")
    else:
        total, _used, free = case.host.disk_usage(existing)
        if free < LOW_DISK_SHARE * total:
            yield Advice(
                f"Less than {LOW_DISK_SHARE:.0%} of the disk that holds {wanted} is free "
                f"({free / 1e9:.1f} of {total / 1e9:.1f} GB)."
            )


def check_boards(case: Case) -> Iterator[Finding]:
    """Persistence mode off, or somebody else's work on the same GPU: neither can be taken out of the figures later."""
    if not case.gpus:
        return
    try:
        nvml = case.host.meters.open_nvml()
        for warning in board_warnings(find_boards(case.devices, nvml), nvml):
            if warning.code is not WarningCode.MIG_PARENT_ENERGY:  # that one is about the meter, which tells it
                yield warning
    except EnergyError as error:
        logger.info("The state of the GPUs cannot be seen: %s", error)


def check_calibrations(case: Case) -> Iterator[Finding]:
    """A sensor's calibration that cannot be read would cost the run its energy."""
    if not case.gpus or case.meter_name is None:
        return
    try:
        nvml = case.host.meters.open_nvml()
        boards = find_boards(case.devices, nvml)
        driver_version = nvml.driver_version()
    except EnergyError as error:
        logger.info("The state of the GPUs cannot be seen: %s", error)
        return
    for board in boards:
        try:
            load_calibration(case.host.calibration_dir, board.uuid, driver_version)
        except EnergyError as error:
            yield Failure(str(error))


def check_power_limit(case: Case) -> Iterator[Finding]:
    """A lowered power limit changes the figures; the environment snapshot keeps it."""
    for gpu in case.gpus:
        limit_w, default_w = gpu.power_limit_w, gpu.default_power_limit_w
        if limit_w is not None and default_w is not None and limit_w < default_w - LIMIT_TOLERANCE_W:
            yield Advice(
                f"The power limit of {gpu.uuid} is {limit_w:.0f} W, below its default of {default_w:.0f} W: "
                "figures will not compare with those of a board at its default."
            )


CHECKS: Final[tuple[Callable[[Case], Iterator[Finding]], ...]] = (
    check_engine,
    check_runner,
    check_dormant_settings,
    check_dataset,
    check_memory,
    check_energy,
    check_output,
    check_boards,
    check_calibrations,
    check_power_limit,
)
