"""One experiment on several processes of this machine, each with the whole model and its shard of the prompts.

parent ─┬─ process 0: baseline ┊ load, warm up ┊ window ┊ record ─┐
        ├─ process 1: baseline ┊ load, warm up ┊ window ┊ record ─┼─ completeness ─ aggregation ─ one result
        └─ …                   barrier         barrier  barrier   ┘
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.artefacts import OUTPUTS_FILE, TIMESERIES_FILE, Artefacts, write_or_go_without
from llenergymeasure.core.backends.registry import preload_modules
from llenergymeasure.core.baseline import BaselineCache
from llenergymeasure.core.gpu.driver import GpuDriverError
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import VISIBLE_DEVICES, visible_gpus
from llenergymeasure.core.progress import Observer
from llenergymeasure.core.timeseries import merge_timeseries
from llenergymeasure.datasets.types import Shard
from llenergymeasure.domain.experiment import RawProcessResult
from llenergymeasure.exceptions import ExperimentError
from llenergymeasure.results.aggregation import CompletenessReport, validate_process_completeness
from llenergymeasure.results.persistence import read_process_results
from llenergymeasure.runners.interrupt import Interrupt
from llenergymeasure.runners.job import Job, MeasuredShard, run_from_json, write_job
from llenergymeasure.runners.process import ChildTask
from llenergymeasure.runners.supervise import ChildGroup, Patience

STATE_DIR: Final = ".state"
"""Where the processes leave their records, below the work directory."""


def run_shards(
    whole: Job, processes: int, observer: Observer, baselines: BaselineCache
) -> tuple[list[RawProcessResult], CompletenessReport, Artefacts]:
    """Run one experiment on several processes; gives their records, proof that none is missing, and their files.

    Args:
        whole: The experiment, with its identity.
        observer: Told what the first of them does.
        baselines: Idle measurements that may be reused; fresh ones are added.

    Raises:
        ExperimentError: There are fewer prompts than processes, a process failed, or its record is not whole.
    """
    config, state_dir = whole.config, whole.work_dir / STATE_DIR
    if processes > config.n:
        raise ExperimentError(
            f"{config.backend}.num_processes: {processes} processes cannot share {config.n} prompts. "
            "Raise n, or lower it."
        )
    tasks = []
    for index, environment in enumerate(process_environments(config, processes)):
        directory = whole.work_dir / f"process_{index}"
        directory.mkdir(parents=True, exist_ok=True)
        write_job(replace(whole, work_dir=directory, baselines=baselines.entries(), shard=Shard(index, processes)))
        log_path = whole.work_dir / f"process_{index}.log"
        tasks.append(ChildTask(directory, log_path, preload_modules(config.backend), environment))
    results = ChildGroup(tasks, Patience()).run(observer, Interrupt())
    shards = [run_from_json(MeasuredShard, result, task.directory) for task, result in zip(tasks, results, strict=True)]
    for shard in shards:
        for entry in shard.baselines:
            baselines.put(tuple(entry.devices), entry.meter, entry.baseline)
    experiment_id = whole.experiment_id or ""
    records = read_process_results(experiment_id, state_dir)
    completeness = validate_process_completeness(experiment_id, records, processes, state_dir)
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
