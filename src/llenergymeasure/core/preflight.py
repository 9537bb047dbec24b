"""Can this experiment run here? Every reason against it at once, before anything is loaded or waited for.

A check is a function that takes a `Case` and yields what it finds; `CHECKS` is the list of them. A `Failure` stops the
run, a `MeasurementWarning` goes into the result, a `LoggedWarning` into the log. What was found on the way (prompts, a
proven meter) is handed on, so that nothing is read or proved twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.same_work import ineffective_settings
from llenergymeasure.config.user_config import NO_RUNNERS_YET, UserConfig
from llenergymeasure.core.backends.protocol import InferenceBackend
from llenergymeasure.core.energy.boards import board_warnings, calibrated_drivers, calibrations_of
from llenergymeasure.core.energy.select import BackendName, known_gpus, select_energy_backend
from llenergymeasure.core.energy.types import EnergyBackend, MeterOptions
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId, Gpu, free_memory_mb
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.model.memory import OVERHEAD, estimate_vram, memory_text
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.datasets.types import RawPrompts
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import BackendError, ConfigError, EnergyError, LLEMError, PreFlightError
from llenergymeasure.security import user_path, validate_path

logger = logging.getLogger(__name__)

LOW_DISK_SHARE: Final = 0.10
"""Free part of a file system below which a user is told."""

LIMIT_TOLERANCE_W: Final = 1.0
"""A power limit this close below the factory's is the factory's."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A reason why the experiment cannot run, with its fix."""

    text: str


@dataclass(frozen=True, slots=True)
class LoggedWarning:
    """Something a user should know that does not touch the figures' meaning."""

    text: str


Finding = Failure | MeasurementWarning | LoggedWarning


@dataclass(frozen=True)
class Case:
    """What is checked, and what it would run on; each thing is looked for once, when a check first asks for it."""

    config: ExperimentConfig
    engine: InferenceBackend | BackendError
    machine: UserConfig
    meter_name: BackendName | None
    host: Host
    options: MeterOptions
    elsewhere: tuple[DeviceId, ...] = ()

    @cached_property
    def devices(self) -> tuple[DeviceId, ...] | LLEMError:
        """What the engine would use, or why it cannot tell."""
        if isinstance(self.engine, BackendError):
            return self.engine
        try:
            return self.engine.plan_devices(self.config)
        except LLEMError as error:
            return error

    @cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        """The planned GPUs; none where NVML does not answer: the energy check tells of that."""
        return () if isinstance(self.devices, LLEMError) else known_gpus(self.devices, self.host)

    @cached_property
    def prompts(self) -> RawPrompts:
        """The prompts of the data set.

        Raises:
            ConfigError: They cannot be had.
        """
        return load_raw_prompts(self.config.dataset, self.config.n)

    @cached_property
    def meter(self) -> EnergyBackend | None:
        """The meter that was asked for by name, proved; `None`: whichever works will do, or the devices are not known.

        Raises:
            EnergyError: It does not work here.
        """
        if self.meter_name in (None, "auto") or isinstance(self.devices, LLEMError) or not self.devices:
            return None
        return select_energy_backend(self.meter_name, self.devices, self.options, self.host)


@dataclass(frozen=True, slots=True)
class Ready:
    """What pre-flight found on a machine that can run the experiment.

    Args:
        warnings: For the result.
        logged: What the log was told.
        prompts: `None`: nobody has read them yet.
        meter: The one that was asked for by name, proved; `None`: none was.
    """

    warnings: tuple[MeasurementWarning, ...] = ()
    logged: tuple[str, ...] = ()
    prompts: RawPrompts | None = None
    meter: EnergyBackend | None = None


def run_preflight(
    config: ExperimentConfig,
    engine: InferenceBackend | BackendError,
    machine: UserConfig,
    meter_name: BackendName | None,
    host: Host | None = None,
    options: MeterOptions | None = None,
    elsewhere: tuple[DeviceId, ...] = (),
) -> Ready:
    """Run all checks; what is worth knowing but not fatal is returned, or told in the log.

    Args:
        engine: Not loaded, or why there is none.
        meter_name: The energy backend that is wanted; `None`: energy is switched off.
        elsewhere: GPUs of other machines that the engine may use too.

    Raises:
        PreFlightError: The experiment cannot run here; lists every reason.
    """
    case = Case(config, engine, machine, meter_name, host or Host(), options or MeterOptions(), elsewhere)
    findings = [finding for check in CHECKS for finding in check(case)]
    failures = [finding.text for finding in findings if isinstance(finding, Failure)]
    if failures:
        raise PreFlightError(failures)
    logged = tuple(finding.text for finding in findings if isinstance(finding, LoggedWarning))
    for text in logged:
        logger.warning("%s", text)
    warnings = tuple(finding for finding in findings if isinstance(finding, MeasurementWarning))
    return Ready(warnings, logged, case.prompts, case.meter)


def check_engine(case: Case) -> Iterator[Finding]:
    """Device, packages, model files, and settings that do not work together."""
    engine = case.engine
    problems = [str(engine)] if isinstance(engine, BackendError) else list(engine.preflight(case.config))
    yield from map(Failure, problems)
    if isinstance(case.devices, LLEMError) and str(case.devices) not in problems:  # usually one of them
        yield Failure(str(case.devices))


def check_reach(case: Case) -> Iterator[Finding]:
    """An engine that may use GPUs of other machines must have enough of them."""
    section = case.config.backend_config
    if isinstance(case.devices, LLEMError) or case.devices == (CPU_DEVICE,) or not section.spans_machines:
        return
    there = len(case.devices) + len(case.elsewhere)
    if section.gpu_count(there) > there:
        yield Failure(
            f"{case.config.backend}: {section.gpu_count(there)} GPUs are asked for, and {there} can be reached. Ask "
            "for fewer, or run on a cluster that has more (--cluster)."
        )


def check_runner(case: Case) -> Iterator[Finding]:
    """The runner must be one that this version has; a job that is in its container already is told `local`."""
    runner = case.machine.runners.of(case.config.backend)
    kind, name = runner.partition(":")[0], case.config.backend
    if kind in NO_RUNNERS_YET:
        variable = f"LLEM_RUNNER_{name.upper()}"
        where, fix = f"runners.{name}", f"Set runners.{name}: local in the user config, or {variable}=local."
        if case.host.environ.get(variable, "").strip():  # it beats the file
            where, fix = f"environment variable {variable}", "Unset it, or set it to local."
        yield Failure(f"{where}: {runner!r}: the {kind} runner is not supported yet by this version. {fix}")


def check_ineffective_settings(case: Case) -> Iterator[Finding]:
    """What was written and does nothing should not be believed to have done something."""
    yield from (LoggedWarning(f"{told}.") for told in ineffective_settings(case.config))


def check_dataset(case: Case) -> Iterator[Finding]:
    """The prompts must be readable, and enough of them."""
    try:
        _ = case.prompts
    except ConfigError as error:
        yield Failure(str(error))


def check_memory(case: Case) -> Iterator[Finding]:
    """What must fit into the GPUs' free memory: weights, and the cache of the largest batch where the engine fixes it.

    The estimate's reserve is not a reason to refuse a run that may well fit, so it is only told.
    """
    section = case.config.backend_config
    if case.elsewhere:
        return  # what is free there is not known here
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
            f"GPU memory: the model needs at least {memory_text(needed_mb)} and {memory_text(free_mb)} are free on "
            f"{where} ({'; '.join(estimate.notes)}). Use a smaller model or batch, quantise it, or free the GPU."
        )
    elif needed_mb * (1 + OVERHEAD) > free_mb:
        yield LoggedWarning(
            f"GPU memory may not suffice: about {memory_text(needed_mb * (1 + OVERHEAD))} with a reserve of "
            f"{OVERHEAD:.0%}, and {memory_text(free_mb)} are free on {where}."
        )


def check_energy(case: Case) -> Iterator[Finding]:
    """An energy backend asked for by name must give a reading now; `auto` takes what there is."""
    try:
        _ = case.meter
    except LLEMError as error:
        yield Failure(str(error))


def check_output(case: Case) -> Iterator[Finding]:
    """Results must have a place, with room in it."""
    if case.config.output_dir is not None:
        yield from output_findings(case.config.output_dir, case.host)


def output_findings(output_dir: str, host: Host) -> Iterator[Finding]:
    """See `check_output`."""
    try:
        wanted = validate_path(output_dir, what="output_dir")
    except ConfigError as error:
        yield Failure(str(error))
        return
    existing = next(path for path in (wanted, *wanted.parents) if os.path.exists(path))  # also where one is unreadable
    named = user_path(output_dir).absolute()
    broken = next((path for path in (named, *named.parents) if os.path.islink(path) and not os.path.exists(path)), None)
    if broken is not None:
        yield Failure(f"output_dir: {broken} is a link to {os.readlink(broken)}, which does not exist. Make it first.")
    elif not existing.is_dir():
        yield Failure(f"output_dir: {existing} is a file. Choose a directory.")
    elif not host.is_writable(existing):
        yield Failure(f"output_dir: {existing} is not writable. Choose a directory you may write to (--output).")
    else:
        total, _used, free = host.disk_usage(existing)
        if free < LOW_DISK_SHARE * total:
            yield LoggedWarning(
                f"Less than {LOW_DISK_SHARE:.0%} of the disk that holds {wanted} is free "
                f"({free / 1e9:.1f} of {total / 1e9:.1f} GB)."
            )


def check_boards(case: Case) -> Iterator[Finding]:
    """Persistence mode off, or somebody else's work on the same GPU: neither can be taken out of the figures later."""
    for warning in board_warnings(case.gpus):
        if warning.code is not WarningCode.MIG_PARENT_ENERGY:  # that one is about the meter, which tells it
            yield warning


def check_calibrations(case: Case) -> Iterator[Finding]:
    """A sensor's calibration that cannot be read would cost the run its energy; one with another driver is not used."""
    if case.meter_name is None:
        return
    for gpu in case.gpus:
        try:
            found = calibrations_of([gpu], case.host.calibration_dir)
        except EnergyError as error:
            yield Failure(str(error))
            continue
        others = [] if found else calibrated_drivers(gpu, case.host.calibration_dir)
        if others:
            yield LoggedWarning(
                f"The calibration of {gpu.board_uuid} with driver {others[-1]} does not count for driver "
                f"{gpu.driver.driver_version()}: python -m llenergymeasure.core.energy.calibrate makes one that does."
            )


def check_power_limit(case: Case) -> Iterator[Finding]:
    """A lowered power limit changes the figures; the environment snapshot keeps it."""
    for gpu in case.gpus:
        limit_w, default_w = gpu.power_limit_w, gpu.default_power_limit_w
        if limit_w is not None and default_w is not None and limit_w < default_w - LIMIT_TOLERANCE_W:
            yield LoggedWarning(
                f"The power limit of {gpu.uuid} is {limit_w:.0f} W, below its default of {default_w:.0f} W: "
                "figures will not compare with those of a board at its default."
            )


CHECKS: Final[tuple[Callable[[Case], Iterator[Finding]], ...]] = (
    check_engine,
    check_reach,
    check_runner,
    check_ineffective_settings,
    check_dataset,
    check_memory,
    check_energy,
    check_output,
    check_boards,
    check_calibrations,
    check_power_limit,
)
