"""One experiment in this process, on this machine's devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from uuid import uuid4

from llenergymeasure.config.models import ExperimentConfig, model_short_name
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.protocol import InferenceBackend
from llenergymeasure.core.backends.registry import get_backend
from llenergymeasure.core.baseline import BaselineCache
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.energy.select import BackendName, select_energy_backend
from llenergymeasure.core.energy.types import EnergyBackend, MeterOptions
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.harness import Bench, measure
from llenergymeasure.core.host.environment import environment_in_background
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.preflight import run_preflight
from llenergymeasure.core.progress import Observer, StepStarted, ignore_events
from llenergymeasure.core.window import Barrier
from llenergymeasure.datasets.types import WHOLE, Shard
from llenergymeasure.domain.energy import EmissionFactors
from llenergymeasure.exceptions import BackendError
from llenergymeasure.results.aggregation import aggregate_results
from llenergymeasure.results.persistence import write_process_result
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.job import LOCAL_RUNNER, Job, MeasuredRun, MeasuredShard, read_job, run_to_json
from llenergymeasure.runners.parallel import STATE_DIR, run_shards
from llenergymeasure.security import sanitize_experiment_id

SESSION_BASELINES = BaselineCache()
"""Idle measurements of this process's life, so that a notebook's second run need not wait again."""


def run_local(
    config: ExperimentConfig,
    machine: UserConfig,
    work_dir: Path,
    *,
    experiment_id: str | None = None,
    observer: Observer = ignore_events,
    baselines: BaselineCache = SESSION_BASELINES,
) -> MeasuredRun:
    """Run one experiment here and now.

    Args:
        work_dir: An existing directory for the run's files; the caller removes it.
        experiment_id: Identity of the measurement; `None`: a new one.
        baselines: Idle measurements that may be reused; a fresh one is added.

    Raises:
        LLEMError: See `core.harness.measure` and `runners.parallel.run_shards`.
    """
    experiment_id = experiment_id or new_experiment_id(config, datetime.now(timezone.utc))
    processes = config.backend_config.processes
    if processes > 1:
        whole = Job(config, machine, work_dir, experiment_id=experiment_id)
        records, completeness, artefacts = run_shards(whole, processes, observer, baselines)
    else:
        bench = bench_here(config, machine, work_dir, observer=observer, baselines=baselines)
        measurement = measure(config, bench, experiment_id, work_dir)
        records, completeness, artefacts = [measurement.record], None, measurement.artefacts
    result = aggregate_results(experiment_id, records, completeness=completeness, factors=emission_factors(machine))
    return MeasuredRun(result.model_copy(update={"runner": LOCAL_RUNNER}), artefacts, baselines.entries())


def run_job(directory: Path, link: ParentLink) -> str:
    """Run the job of a directory in this process: a whole experiment, or one shard of it.

    Args:
        directory: Holds `job.json`, and takes the files of the run.
        link: Takes progress events, and brings the shards together.

    Returns:
        A `MeasuredRun`, or a `MeasuredShard`, as JSON.

    Raises:
        LLEMError: See `run_local`.
    """
    job = read_job(directory)
    config, machine, baselines = job.config, job.machine, BaselineCache(job.baselines)
    experiment_id = job.experiment_id or new_experiment_id(config, datetime.now(timezone.utc))
    if job.shard.count == 1:
        run = run_local(
            config, machine, directory, experiment_id=experiment_id, observer=link.observe, baselines=baselines
        )
        return run_to_json(run, directory)
    bench = bench_here(
        config,
        machine,
        directory,
        observer=link.observe,
        baselines=baselines,
        share=job.shard,
        wait_for_others=link.wait_for_others,
    )
    measurement = measure(config, bench, experiment_id, directory)
    write_process_result(measurement.record, directory.parent / STATE_DIR)
    return run_to_json(MeasuredShard(measurement.artefacts, baselines.entries()), directory)


def bench_here(
    config: ExperimentConfig,
    machine: UserConfig,
    work_dir: Path,
    *,
    observer: Observer = ignore_events,
    baselines: BaselineCache = SESSION_BASELINES,
    share: Shard = WHOLE,
    wait_for_others: Barrier | None = None,
) -> Bench:
    """This machine's real engine, meters and clock, as the user has set them up.

    Args:
        work_dir: An existing directory for the run's files.
        baselines: Idle measurements that may be reused; a fresh one is added.
        share: This process's part, where several run the experiment together.
        wait_for_others: Their barrier; `None` where there are none.
    """
    host = Host()
    cache_dir = Path(machine.output.model_cache_dir).expanduser()
    options = MeterOptions(
        poll_interval_ms=machine.advanced.nvml_poll_interval_ms,
        power_gain_uncertainty_pct=machine.advanced.power_gain_uncertainty_pct,
        spill_dir=work_dir,
        calibration_dir=host.calibration_dir,
        family_pid=os.getppid() if share.count > 1 else None,
    )
    meter_name = energy_backend_name(config, machine)

    def meter_for(devices: Sequence[DeviceId]) -> EnergyBackend:
        if meter_name is None:
            return NoEnergyBackend(host.clock)
        return select_energy_backend(meter_name, devices, options, host)

    preflight = partial(run_preflight, machine=machine, meter_name=meter_name, host=host, options=options)
    engine = engine_or_reason(config.backend, host.clock, cache_dir)
    if isinstance(engine, BackendError):
        observer(StepStarted("preflight"))
        preflight(config, engine)  # it tells of this together with everything else that is wrong
        raise engine
    return Bench(
        engine=engine,
        preflight=preflight,
        meter_for=meter_for,
        environment=partial(environment_in_background, host),
        baselines=baselines,
        clock=host.clock,
        observer=observer,
        share=share,
        wait_for_others=wait_for_others,
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
