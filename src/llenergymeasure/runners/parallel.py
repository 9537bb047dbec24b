"""One experiment on several processes of this machine, each with the whole model and its share of the prompts.

parent ─┬─ process 0: baseline ┊ load, warm up ┊ window ─ record ─┐
        ├─ process 1: baseline ┊ load, warm up ┊ window ─ record ─┼─ completeness ─ aggregation ─ one result
        └─ …                   barrier         barrier            ┘
"""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.artefacts import OUTPUTS_FILE, TIMESERIES_FILE, Artefacts, write_or_go_without
from llenergymeasure.core.backends.registry import preload_modules
from llenergymeasure.core.baseline import BaselineCache, CachedBaseline
from llenergymeasure.core.gpu.driver import GpuDriverError
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import VISIBLE_DEVICES, visible_gpus
from llenergymeasure.core.progress import Event, Observer
from llenergymeasure.core.timeseries import merge_timeseries
from llenergymeasure.datasets.types import Shard
from llenergymeasure.exceptions import ExperimentError
from llenergymeasure.results.aggregation import aggregate_results, validate_process_completeness
from llenergymeasure.results.persistence import read_process_results, write_process_result
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.interrupt import Interrupt
from llenergymeasure.runners.local import LOCAL_RUNNER, MeasuredRun, emission_factors, measure_here
from llenergymeasure.runners.process import Child, ChildTask, Mail, function_path
from llenergymeasure.runners.supervise import ChildGroup, Patience

if TYPE_CHECKING:
    from llenergymeasure.config.user_config import UserConfig

STATE_DIR: Final = ".state"
"""Where the processes leave their records, below the work directory."""


@dataclass(frozen=True, slots=True)
class ShareJob:
    """What one of the processes is to do.

    Args:
        config: The whole experiment.
        machine: The user's settings for this machine.
        experiment_id: Identity of the measurement.
        work_dir: An existing directory for this process's files.
        state_dir: Where its record goes; all processes share it.
        share: Which of them it is.
        baselines: Idle measurements that may be reused.
    """

    config: ExperimentConfig
    machine: UserConfig
    experiment_id: str
    work_dir: Path
    state_dir: Path
    share: Shard
    baselines: tuple[CachedBaseline, ...]


@dataclass(frozen=True, slots=True)
class ShareOutcome:
    """What a process hands back besides its record: its files, and idle measurements for later runs."""

    artefacts: Artefacts
    baselines: tuple[CachedBaseline, ...]


def run_parallel(
    config: ExperimentConfig,
    machine: UserConfig,
    experiment_id: str,
    work_dir: Path,
    *,
    processes: int,
    observer: Observer,
    baselines: BaselineCache,
) -> MeasuredRun:
    """Run one experiment on several processes and put their records together.

    Args:
        config: The experiment.
        machine: The user's settings for this machine.
        experiment_id: Identity of the measurement.
        work_dir: An existing directory for the run's files.
        processes: How many.
        observer: Told what the first of them does.
        baselines: Idle measurements that may be reused; fresh ones are added.

    Raises:
        ExperimentError: There are fewer prompts than processes, a process failed, or its record is not whole.
    """
    if processes > config.n:
        raise ExperimentError(
            f"{config.backend}.num_processes: {processes} processes cannot share {config.n} prompts. "
            "Raise n, or lower it."
        )
    environments = process_environments(config, processes)
    shares = [Shard(index, processes) for index in range(processes)]
    jobs = [
        ShareJob(
            config,
            machine,
            experiment_id,
            _made(work_dir / f"process_{share.index}"),
            work_dir / STATE_DIR,
            share,
            baselines.entries(),
        )
        for share in shares
    ]
    outcomes = _run_jobs(jobs, environments, work_dir, observer)
    for outcome in outcomes:
        for entry in outcome.baselines:
            baselines.put(tuple(entry.devices), entry.meter, entry.baseline)
    records = read_process_results(experiment_id, work_dir / STATE_DIR)
    completeness = validate_process_completeness(experiment_id, records, processes, work_dir / STATE_DIR)
    result = aggregate_results(experiment_id, records, completeness=completeness, factors=emission_factors(machine))
    result = result.model_copy(update={"runner": LOCAL_RUNNER})
    return MeasuredRun(result, merge_artefacts([outcome.artefacts for outcome in outcomes], work_dir))


def measure_share(job: ShareJob, link: ParentLink) -> ShareOutcome:
    """Measure a share of an experiment in this child process, and leave the record where the parent looks for it.

    Args:
        job: What to do.
        link: Takes progress events, and brings the processes together.

    Raises:
        LLEMError: See `runners.local.measure_here`.
    """
    baselines = BaselineCache(job.baselines)
    measurement = measure_here(
        job.config,
        job.machine,
        job.experiment_id,
        job.work_dir,
        observer=link.observe,
        baselines=baselines,
        share=job.share,
        wait_for_others=link.wait_for_others,
    )
    write_process_result(measurement.record, job.state_dir)
    return ShareOutcome(measurement.artefacts, baselines.entries())


def process_environments(config: ExperimentConfig, processes: int) -> list[dict[str, str]]:
    """Environment variables that give each process a device of its own.

    A GPU each, dealt out in turns where there are fewer GPUs than processes; on the CPU an equal part of the cores,
    because engines otherwise start as many threads as there are cores in every process.

    Args:
        config: The experiment.
        processes: How many.
    """
    names = [] if config.backend_config.device_choice == "cpu" else _visible_names(os.environ)
    if names:
        return [{VISIBLE_DEVICES: names[index % len(names)]} for index in range(processes)]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))} for _ in range(processes)]


def merge_artefacts(parts: Sequence[Artefacts], work_dir: Path) -> Artefacts:
    """One set of files out of every process's own.

    The time series become one, since all windows began together; the texts become one in the order of the prompts; a
    raw trace belongs to one process's window and keeps its process's number.

    Args:
        parts: The files of each process, in order.
        work_dir: Where the merged files go.
    """
    timeseries = [part.timeseries for part in parts if part.timeseries is not None]
    outputs = [part.outputs for part in parts if part.outputs is not None]
    traces = []
    for index, part in enumerate(parts):
        if part.trace is not None:
            numbered = work_dir / f"{part.trace.stem}_{index}{part.trace.suffix}"
            traces.append(part.trace.replace(numbered))
    merged = work_dir / TIMESERIES_FILE
    dealt = work_dir / OUTPUTS_FILE
    return Artefacts(
        timeseries=write_or_go_without(merged, lambda path: merge_timeseries(timeseries, path)) if timeseries else None,
        trace=traces[0] if traces else None,
        outputs=write_or_go_without(dealt, lambda path: _merge_outputs(outputs, path)) if outputs else None,
        further=tuple(traces[1:]),
    )


def _run_jobs(
    jobs: Sequence[ShareJob], environments: Sequence[Mapping[str, str]], log_dir: Path, observer: Observer
) -> list[ShareOutcome]:
    mailbox: queue.SimpleQueue[Mail] = queue.SimpleQueue()
    children = []
    for job, environment in zip(jobs, environments, strict=True):
        first = job.share.index == 0
        task = ChildTask(
            function_path(measure_share),
            job,
            log_dir,
            name=f"process_{job.share.index}",
            preload=preload_modules(job.config.backend),
            environment=tuple(environment.items()),
        )
        children.append(Child(task, mailbox, observer if first else _ignore))
    outcomes: list[ShareOutcome] = ChildGroup(children, mailbox, Patience()).run(Interrupt())
    return outcomes


def _merge_outputs(paths: Sequence[Path], target: Path) -> None:
    """Deal the lines of all processes out in the order in which the prompts were dealt to them."""
    files = []
    for path in paths:
        with path.open(encoding="utf-8") as lines:  # a text may hold line separators that `str.splitlines` cuts at
            files.append(list(lines))
    with target.open("w", encoding="utf-8") as merged:
        for turn in range(max(map(len, files))):
            merged.writelines(own[turn] for own in files if turn < len(own))


def _visible_names(environ: Mapping[str, str]) -> list[str]:
    """Names by which CUDA_VISIBLE_DEVICES can select each GPU this process sees; empty without GPUs."""
    try:
        count = len(visible_gpus(environ, open_nvml()))
    except GpuDriverError:
        return []
    named = [name.strip() for name in environ.get(VISIBLE_DEVICES, "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _ignore(event: Event) -> None:
    """The other processes do the same as the first."""
