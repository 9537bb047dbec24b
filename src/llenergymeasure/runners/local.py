"""One experiment on this machine's devices: in this process, or on several with the whole model and a shard each.

parent ─┬─ process 0: baseline ┊ load, warm up ┊ window ─ record ─┐
        ├─ process 1: baseline ┊ load, warm up ┊ window ─ record ─┼─ completeness ─ aggregation ─ one result
        └─ …                   barrier         barrier            ┘

Records wait on disk to be put together; one that the disk does not take comes with its process's last message.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Final
from uuid import uuid4

from llenergymeasure.atomic import make_unique_directory
from llenergymeasure.config.models import ExperimentConfig, model_short_name
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.protocol import InferenceBackend
from llenergymeasure.core.backends.registry import get_backend, preload_modules
from llenergymeasure.core.baseline import BaselineCache
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.energy.select import BackendName, select_energy_backend
from llenergymeasure.core.energy.several import SeveralMeters
from llenergymeasure.core.energy.types import EnergyBackend, MeterOptions
from llenergymeasure.core.gpu.driver import DeviceId, GpuDriverError
from llenergymeasure.core.gpu.visible import VISIBLE_DEVICES
from llenergymeasure.core.harness import Bench, measure
from llenergymeasure.core.host.environment import environment_in_background
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.host.marker import alone, measuring
from llenergymeasure.core.preflight import Ready, run_preflight
from llenergymeasure.core.progress import Observer, SkipKey, StepStarted, ignore_events
from llenergymeasure.core.timeseries import (
    OUTPUTS_FILE,
    TIMESERIES_FILE,
    Artefacts,
    merge_timeseries,
    write_or_go_without,
)
from llenergymeasure.core.window import Barrier
from llenergymeasure.datasets.types import Shard
from llenergymeasure.domain.energy import EmissionFactors
from llenergymeasure.domain.experiment import RawProcessResult
from llenergymeasure.exceptions import BackendError, ExperimentError, PersistenceError
from llenergymeasure.results.aggregation import CompletenessReport, aggregate_results, validate_process_completeness
from llenergymeasure.results.process_records import read_process_results, write_process_result
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.job import (
    LOCAL_RUNNER,
    Job,
    MeasuredRun,
    MeasuredShard,
    read_job,
    run_from_json,
    run_to_json,
    write_job,
)
from llenergymeasure.runners.process import ChildTask
from llenergymeasure.runners.ray_meter import places_of
from llenergymeasure.runners.supervise import ChildGroup, Interrupt, Patience
from llenergymeasure.security import sanitize_experiment_id

logger = logging.getLogger(__name__)

STATE_DIR: Final = ".state"
"""Where the processes of a run leave their records, below its work directory."""

SESSION_BASELINES = BaselineCache()
"""Idle measurements of this process's life, so that a notebook's second run need not wait again."""


def run_local(
    job: Job,
    observer: Observer = ignore_events,
    baselines: BaselineCache = SESSION_BASELINES,
    skip: SkipKey | None = None,
) -> MeasuredRun:
    """Run a whole experiment here and now; the caller removes its work directory.

    Args:
        baselines: Idle measurements that may be reused; a fresh one is added.
        skip: Ends a wait when it answers true, where the experiment is on one process; `None`: nobody can.

    Raises:
        LLEMError: It failed, see `core.harness.measure`; or its processes could not all do their part.
    """
    experiment_id = _identity(job)
    if job.config.backend_config.processes > 1:
        records, completeness, artefacts = _run_shards(job, experiment_id, observer, baselines)
    else:
        bench = replace(bench_here(job, observer, baselines), skip=skip)
        measured = measure(job.config, bench, experiment_id, job.work_dir)
        records, completeness, artefacts = [measured.record], None, measured.artefacts
    factors = emission_factors(job.machine)
    result = aggregate_results(experiment_id, records, completeness=completeness, factors=factors)
    return MeasuredRun(result.model_copy(update={"runner": LOCAL_RUNNER}), artefacts, baselines.entries())


def run_job(directory: Path, link: ParentLink) -> str:
    """Run the job of a directory in this process: a whole experiment, or one shard of it.

    Returns:
        A `MeasuredRun`, or a `MeasuredShard`, as JSON.

    Raises:
        LLEMError: See `run_local`.
    """
    job = read_job(directory)
    baselines = BaselineCache(job.baselines)
    if job.shard.count == 1:
        return run_to_json(run_local(job, link.observe, baselines), directory)
    bench = bench_here(job, link.observe, baselines, link.wait_for_others, link.launcher_pid)
    measured = measure(job.config, bench, _identity(job), directory)
    unsaved = None
    try:
        write_process_result(measured.record, directory.parent / STATE_DIR)
    except PersistenceError as error:
        logger.warning("%s The record is handed over instead.", error)
        unsaved = measured.record
    return run_to_json(MeasuredShard(measured.artefacts, baselines.entries(), unsaved), directory)


def bench_here(
    job: Job,
    observer: Observer = ignore_events,
    baselines: BaselineCache = SESSION_BASELINES,
    wait_for_others: Barrier | None = None,
    family_pid: int | None = None,
) -> Bench:
    """This machine's real engine, meters and clock, as the user has set them up.

    Args:
        wait_for_others: The barrier of a run on several processes; `None`: it is on one.
        family_pid: The process that started them all; `None`: this one started it all.
    """
    host, machine = Host(), job.machine
    places = [] if job.elsewhere is None else places_of(job.elsewhere, job.config.energy.backend or "auto")
    elsewhere = tuple(device for place in places for device in place.devices)
    options = MeterOptions(
        poll_interval_ms=machine.advanced.nvml_poll_interval_ms,
        power_gain_uncertainty_pct=machine.advanced.power_gain_uncertainty_pct,
        spill_dir=job.work_dir,
        calibration_dir=host.calibration_dir,
        family_pid=family_pid if job.elsewhere is None else job.elsewhere.family_pid,
    )
    meter_name = energy_backend_name(job.config, machine)

    def meter_for(devices: Sequence[DeviceId]) -> EnergyBackend:
        if meter_name is None:
            return NoEnergyBackend(host.clock)
        parts = [(place, tuple(device for device in devices if device in place.devices)) for place in places]
        others = [(place, part) for place, part in parts if part]
        here = select_energy_backend(meter_name, [each for each in devices if each not in elsewhere], options, host)
        return SeveralMeters(here, others, host.clock, job.work_dir) if others else here

    def preflight(config: ExperimentConfig, engine: InferenceBackend | BackendError) -> Ready:
        ready = run_preflight(config, engine, machine, meter_name, host, options, elsewhere)
        return replace(ready, meter=None) if places else ready  # its meter is of this machine only

    engine = engine_or_reason(job.config.backend, host.clock, Path(machine.output.model_cache_dir).expanduser())
    if isinstance(engine, BackendError):
        observer(StepStarted("preflight"))
        preflight(job.config, engine)  # it tells of this together with everything else that is wrong
        raise engine
    return Bench(
        engine=engine,
        preflight=preflight,
        meter_for=meter_for,
        environment=partial(environment_in_background, host),
        baselines=baselines,
        clock=host.clock,
        observer=observer,
        shard=job.shard,
        wait_for_others=wait_for_others,
        elsewhere=elsewhere,
        alongside=measuring if job.shard.index == 0 else alone,  # one process speaks for all of an experiment
    )


def engine_or_reason(name: str, clock: Clock, model_cache_dir: Path) -> InferenceBackend | BackendError:
    """The engine, not loaded, or why it cannot be had."""
    try:
        return get_backend(name, clock=clock, model_cache_dir=model_cache_dir)
    except BackendError as error:
        return error


def energy_backend_name(config: ExperimentConfig, machine: UserConfig) -> BackendName | None:
    """The energy backend to use: the experiment's own choice, else the machine's; `None` switches energy off."""
    wanted = config.energy.backend
    return machine.measurement.energy_backend if wanted == "auto" else wanted


def emission_factors(machine: UserConfig) -> EmissionFactors:
    """What a kilowatt-hour means here, as far as the user said."""
    said = machine.measurement
    return EmissionFactors(
        carbon_intensity_gco2_kwh=said.carbon_intensity_gco2_kwh,
        pue=said.datacenter_pue,
        electricity_price_kwh=said.electricity_price_kwh,
        currency=said.currency,
    )


def new_experiment_id(config: ExperimentConfig, now: datetime) -> str:
    """A name for one measurement that no other has; `now` is in UTC."""
    stamp = now.strftime("%Y-%m-%dT%H-%M-%S")
    return sanitize_experiment_id(f"{model_short_name(config.model)}_{config.backend}_{stamp}_{uuid4().hex[:8]}")


def _identity(job: Job) -> str:
    return job.experiment_id or new_experiment_id(job.config, datetime.now(timezone.utc))


def _run_shards(
    whole: Job, experiment_id: str, observer: Observer, baselines: BaselineCache
) -> tuple[list[RawProcessResult], CompletenessReport, Artefacts]:
    """Run an experiment on several processes; gives their records, proof that none is missing, and their files.

    Args:
        observer: Told what the first of them does.

    Raises:
        ExperimentError: There are fewer prompts than processes, a process failed, or its record is not whole.
    """
    config, processes = whole.config, whole.config.backend_config.processes
    if processes > config.n:
        raise ExperimentError(
            f"{config.backend}.num_processes: {processes} processes cannot share {config.n} prompts. "
            "Raise n, or lower it."
        )
    whole = replace(whole, experiment_id=experiment_id, baselines=baselines.entries())
    tasks = []
    for index, environment in enumerate(process_environments(config, processes)):
        directory = make_unique_directory(whole.work_dir, f"process_{index}")
        write_job(replace(whole, work_dir=directory, shard=Shard(index, processes)))
        log_path = directory.with_suffix(".log")
        tasks.append(ChildTask(directory, log_path, preload_modules(config.backend), environment))
    results = ChildGroup(tasks, Patience()).run(observer, Interrupt())
    shards = [run_from_json(MeasuredShard, result, task.directory) for task, result in zip(tasks, results, strict=True)]
    for shard in shards:
        for entry in shard.baselines:
            baselines.put(tuple(entry.devices), entry.meter, entry.baseline)
    state_dir = whole.work_dir / STATE_DIR
    handed_over = {shard.unsaved.process_index: shard.unsaved for shard in shards if shard.unsaved is not None}
    left = [
        record for record in read_process_results(experiment_id, state_dir) if record.process_index not in handed_over
    ]
    records = [*left, *handed_over.values()]
    completeness = validate_process_completeness(experiment_id, records, processes, state_dir, handed_over)
    return records, completeness, merge_artefacts([shard.artefacts for shard in shards], whole.work_dir)


def process_environments(config: ExperimentConfig, processes: int) -> list[dict[str, str]]:
    """Environment variables that give each process a device of its own.

    A GPU each, dealt out in turns where there are fewer GPUs than processes; on the CPU an equal part of the cores,
    because engines otherwise start as many threads as there are cores in every process.
    """
    names = [] if config.backend_config.device_choice == "cpu" else _visible_names(os.environ)
    if names:
        return [{VISIBLE_DEVICES: names[index % len(names)]} for index in range(processes)]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))} for _ in range(processes)]


def _visible_names(environ: Mapping[str, str]) -> list[str]:
    """Names by which CUDA_VISIBLE_DEVICES can select each GPU this process sees; empty without GPUs."""
    try:
        count = len(Host(environ).visible_gpus())
    except GpuDriverError:
        return []
    named = [name.strip() for name in environ.get(VISIBLE_DEVICES, "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def merge_artefacts(parts: Sequence[Artefacts], work_dir: Path) -> Artefacts:
    """One set of files out of every process's own, in `work_dir`.

    The time series become one, since all windows began together; the texts become one in the order of the prompts; a
    raw trace belongs to one process's window and keeps its process's number.
    """
    timeseries = [part.timeseries for part in parts if part.timeseries is not None]
    outputs = [part.outputs for part in parts if part.outputs is not None]
    numbered = [(part.trace, index) for index, part in enumerate(parts) if part.trace is not None]
    traces = [
        moved
        for trace, index in numbered
        if (moved := write_or_go_without(work_dir / f"{trace.stem}_{index}{trace.suffix}", trace.replace)) is not None
    ]
    merged, dealt = work_dir / TIMESERIES_FILE, work_dir / OUTPUTS_FILE
    return Artefacts(
        timeseries=write_or_go_without(merged, lambda path: merge_timeseries(timeseries, path)) if timeseries else None,
        trace=traces[0] if traces else None,
        outputs=write_or_go_without(dealt, lambda path: _merge_outputs(outputs, path)) if outputs else None,
        further=tuple(traces[1:]),
    )


def _merge_outputs(paths: Sequence[Path], target: Path) -> None:
    """Deal the lines of all processes out in the order in which the prompts were dealt to them."""
    files = []
    for path in paths:
        with path.open(encoding="utf-8") as lines:  # a text may hold line separators that `str.splitlines` cuts at
            files.append(list(lines))
    with target.open("w", encoding="utf-8") as merged:
        for turn in zip_longest(*files, fillvalue=""):
            merged.writelines(turn)
