"""What spreading a study costs its driver: time and memory per run, and how close many nodes come to linear.

Nodes and time are played; the choice of node, the manifest and its journal are those of a real study.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
from benchmarks.noop_experiment import nothing_of
from benchmarks.report import Figure, main

from llenergymeasure.cli.cluster_preview import shortest_s
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.host.threads import share_one_heap
from llenergymeasure.core.progress import Observer
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.runners.cluster import Node
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.launchers import ChosenLauncher
from llenergymeasure.runners.supervise import Interrupt
from llenergymeasure.study.gaps import Gaps
from llenergymeasure.study.manifest import ManifestWriter
from llenergymeasure.study.placement import Placement, forecast
from llenergymeasure.study.plan import PlannedRun, RunFinished, StudyEvent, plan_runs
from llenergymeasure.study.runner import StudyHost, StudyRunner

CYCLES = 5
RUN_S, SPREAD_S = 600.0, 120.0
"""Length of a run: uniform over RUN_S ± SPREAD_S, the same for a run wherever it is."""

PAGE = "x" * 250_000
"""A report from a node: one with charts of power is about as long."""

MACHINE = UserConfig()
GAPS = Gaps(MACHINE.execution.config_gap_seconds, MACHINE.execution.cycle_gap_seconds)


def measure(quick: bool) -> Sequence[Figure]:
    share_one_heap()  # as the command line does
    if quick:
        return [*driver_cost(8, 100), *simulation(50, 2_000), *planned()]
    return [*driver_cost(64, 10_000), *simulation(1_000, 100_000), *planned()]


def study_of(runs: int) -> StudyConfig:
    return StudyConfig(
        experiments=[ExperimentConfig(model="m", random_seed=seed) for seed in range(runs // CYCLES)],
        execution=ExecutionConfig(n_cycles=CYCLES, cycle_order="interleaved"),
    )


def nodes_of(count: int) -> list[Node]:
    return [Node(str(number), f"n{number}", 1, ("NVIDIA H100",), None) for number in range(count)]


def duration_s(run: PlannedRun, node: Node) -> float:
    return RUN_S + SPREAD_S * ((run.position * 0.6180339887) % 1.0 * 2 - 1)


def simulation(count: int, total: int) -> Sequence[Figure]:
    """A whole study on many nodes, with every transition written to disk as a real one would be."""
    study = study_of(total)
    runs = plan_runs(study)
    alone_s = sum(duration_s(run, nodes_of(1)[0]) for run in runs)
    gaps_s = sum(GAPS.between(*pair)[1] for pair in pairwise(runs))
    with tempfile.TemporaryDirectory() as directory:
        manifest = ManifestWriter(study, directory)
        ready_mb = peak_mb()
        began_s, transitions_s, end_s = time.perf_counter(), 0.0, 0.0
        for step in forecast(Placement(runs, MACHINE), nodes_of(count), GAPS, duration_s):
            transition_s = time.perf_counter()
            manifest.mark_running(*step.run.key)
            manifest.mark_completed(*step.run.key, "results/result.json")
            transitions_s += time.perf_counter() - transition_s
            end_s = step.end_s
        whole_s = time.perf_counter() - began_s
        manifest.mark_study_completed()
        size_mb = (Path(directory) / "manifest.json").stat().st_size / 1e6
    note = f"{count:,} nodes, {total:,} runs of {RUN_S / 60:.0f} min ± {SPREAD_S / 60:.0f}, gaps included"
    return [
        Figure("speed-up over linear", (alone_s + gaps_s) / end_s / count, "", note=note),
        Figure("choice of node, per run", 1000 * (whole_s - transitions_s) / total, "ms", target=50.0),
        Figure("manifest, per run", 1000 * transitions_s / total, "ms", note="two transitions, synced to disk"),
        Figure("manifest, at the end", size_mb, "MB"),
        Figure("driver's memory with the study", ready_mb, "MB", note="peak, before the first run"),
        Figure("driver's memory, growth of its peak", peak_mb() - ready_mb, "MB", note="over the runs"),
    ]


@dataclass
class NoWork:
    """A cluster whose experiments take no time."""

    there: list[Node]

    def nodes(self) -> list[Node]:
        return self.there

    def refused(self) -> list[str]:
        return []

    def launcher_on(self, node: Node) -> NoWork:
        return self

    def claim(self, interrupt: Interrupt) -> None: ...

    def leftovers(self) -> list[str]:
        return []

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        return [[] for _ in configs]

    def prepare(self, job: Job) -> None: ...

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        return MeasuredRun(nothing_of(job), Artefacts(), job.baselines)

    def page(self, directory: Path) -> str | None:
        return PAGE

    def discard(self) -> None: ...

    def release(self) -> None: ...


def driver_cost(count: int, total: int) -> Sequence[Figure]:
    """A real study runner, its threads, results and summary, over experiments that take no time."""
    study = study_of(total)
    fields = {"config_gap_seconds": 0.0, "cycle_gap_seconds": 0.0}
    study = study.model_copy(update={"execution": study.execution.model_copy(update=fields)})
    memory_mb: list[float] = []

    def observer(event: StudyEvent) -> None:
        if isinstance(event, RunFinished) and event.run.position % (total // 10) == 0:
            memory_mb.append(psutil.Process().memory_info().rss / 1e6)

    with tempfile.TemporaryDirectory() as directory:
        host = StudyHost(ChosenLauncher(), observer=observer, cluster=NoWork(nodes_of(count)))
        began = time.perf_counter(), time.process_time()
        StudyRunner(study, Path(directory), MACHINE, host).run()
        wall_s, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
    note = f"{count} nodes, {total:,} runs, results, their reports as nodes draw them, summary and its report included"
    return [
        Figure("driver, per run", 1000 * wall_s / total, "ms", target=50.0, note=note),
        Figure("driver, processor time per run", 1000 * cpu_s / total, "ms"),
        Figure("driver's memory, growth", memory_mb[-1] - memory_mb[0], "MB", note="from a tenth of the runs to all"),
    ]


def planned() -> Sequence[Figure]:
    """How long 500 configurations take at the least by the dry run's own estimate, with 5 min for each run itself."""
    study = StudyConfig(
        experiments=[ExperimentConfig(model="m", random_seed=seed) for seed in range(500)],
        execution=ExecutionConfig(n_cycles=3, cycle_order="interleaved"),
    )
    runs = plan_runs(study)
    return [
        Figure(f"planned on {count} nodes", shortest_s(study, runs, MACHINE, nodes_of(count), 300.0) / 3600, "h")
        for count in (1, 2, 8, 64)
    ]


def peak_mb() -> float:
    """Largest memory that this process has had, in MB (Linux tells it in kB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    raise SystemExit(main("Studies on a cluster", measure))
