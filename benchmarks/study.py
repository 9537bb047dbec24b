"""What the study runner itself costs: per experiment, per manifest transition, and to spell out a large grid.

The runner's own cost is the time of a study of experiments that do nothing, less the time its launcher needed to start
their processes, hand over the task, take the result and see them end.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Figure, main

from llenergymeasure.cli.dry_run import render_study_preview
from llenergymeasure.config.loader import load_study_config
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import Observer
from llenergymeasure.results.report.write import report_on
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.launchers import ProcessLauncher
from llenergymeasure.runners.supervise import Interrupt
from llenergymeasure.study.manifest import ManifestWriter
from llenergymeasure.study.runner import StudyHost, StudyRunner

POINTS = 10_000
EXPERIMENTS, QUICK_EXPERIMENTS = 10, 2
TRANSITIONS, QUICK_TRANSITIONS = 2_000, 50


def measure(quick: bool) -> Sequence[Figure]:
    return [*runner_cost(quick), *transition_cost(quick), *dry_run_cost()]


class TimedLauncher:
    """Runs jobs in child processes and adds up how long that takes."""

    def __init__(self) -> None:
        self._launcher = ProcessLauncher("benchmarks.noop_experiment:measure_nothing", preload=lambda backend: ())
        self.times_s: list[float] = []

    def prepare(self, job: Job) -> None:
        self._launcher.prepare(job)

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        start_s = time.perf_counter()
        outcome = self._launcher.run(job, observer, interrupt)
        self.times_s.append(time.perf_counter() - start_s)
        return outcome

    def discard(self) -> None:
        self._launcher.discard()


def runner_cost(quick: bool) -> Sequence[Figure]:
    run_study(1)  # what is imported once per study is not a cost per experiment
    count = QUICK_EXPERIMENTS if quick else EXPERIMENTS
    study_s, children_s, reports_s = run_study(count)
    own_ms = 1000 * (study_s - sum(children_s) - sum(reports_s)) / count
    *of_runs_s, of_study_s = reports_s
    return [
        Figure("child process, start to end", 1000 * statistics.median(children_s), "ms", note=f"median of {count}"),
        Figure("study runner beyond the child", own_ms, "ms", target=50.0, note="per experiment, saving included"),
        Figure("report of a run", 1000 * statistics.median(of_runs_s), "ms", note="within the gap, where there is one"),
        Figure("report of the study", 1000 * of_study_s, "ms"),
    ]


def run_study(count: int) -> tuple[float, list[float], list[float]]:
    """Seconds that a study of `count` experiments took, those of each child in it, and those of each report."""
    reports_s: list[float] = []

    def report(directory: Path) -> None:
        start_s = time.perf_counter()
        report_on(directory)
        reports_s.append(time.perf_counter() - start_s)

    study = StudyConfig(
        experiments=[ExperimentConfig(model=f"noop-{number}") for number in range(count)],
        execution=ExecutionConfig(config_gap_seconds=0.0, cycle_gap_seconds=0.0),
    )
    launcher = TimedLauncher()
    with tempfile.TemporaryDirectory() as directory:
        start_s = time.perf_counter()
        StudyRunner(study, Path(directory), UserConfig(), StudyHost(launcher=launcher, report=report)).run()
        return time.perf_counter() - start_s, launcher.times_s, reports_s


def transition_cost(quick: bool) -> Sequence[Figure]:
    study = StudyConfig(experiments=[ExperimentConfig(model="noop", random_seed=seed) for seed in range(POINTS)])
    with tempfile.TemporaryDirectory() as directory:
        writer = ManifestWriter(study, directory)
        times_ms = []
        for entry in writer.entries()[: QUICK_TRANSITIONS if quick else TRANSITIONS]:
            start_s = time.perf_counter()
            writer.mark_running(entry.config_hash, entry.cycle)
            times_ms.append(1000 * (time.perf_counter() - start_s))
        writer.mark_interrupted()
    note = f"{len(times_ms)} transitions of a study of {POINTS:,}, synced to disk"
    return [
        Figure("manifest transition, median", statistics.median(times_ms), "ms", target=5.0, note=note),
        Figure("manifest transition, worst", max(times_ms), "ms"),
    ]


def dry_run_cost() -> Sequence[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "study.yaml"
        path.write_text(
            "model: builtin/tiny-llama\n"
            "pytorch: {device: cpu}\n"
            "sweep:\n"
            "  precision: [fp32, bf16]\n"
            f"  pytorch.batch_size: {list(range(1, 51))}\n"
            f"  random_seed: {list(range(POINTS // 100))}\n"
        )
        start_s = time.perf_counter()
        study = load_study_config(path)
        expanded_s = time.perf_counter()
        render_study_preview(study, UserConfig())
        end_s = time.perf_counter()
    note = f"{len(study.experiments):,} points"
    return [
        Figure("sweep expansion", expanded_s - start_s, "s", note=f"{note}, read, spanned and validated"),
        Figure("dry run of a study", end_s - start_s, "s", target=6.0, note=f"{note}, preview included"),
    ]


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    raise SystemExit(main("Study runner", measure))
