"""Studies on disk, made of results that nobody measured."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult, StudySummary
from llenergymeasure.results.persistence import STUDY_FILE, save_result, to_json, to_parquet
from llenergymeasure.results.statistics import summarise_configurations
from llenergymeasure.study.gaps import Gaps
from llenergymeasure.study.manifest import ManifestWriter
from llenergymeasure.study.plan import PlannedRun, plan_runs
from llenergymeasure.study.saving import TABLE_FILE, write_study
from result_samples import NOON, make_result


def study_of(batches: range, cycles: int = 3, **fields: object) -> StudyConfig:
    """A study over batch sizes and both half and full precision."""
    return StudyConfig(
        name="batches",
        experiments=[
            ExperimentConfig.model_validate(
                {"model": "m", "precision": precision, "pytorch": {"batch_size": batch}, **fields}
            )
            for precision in ("fp32", "bf16")
            for batch in batches
        ],
        execution=ExecutionConfig(n_cycles=cycles, config_gap_seconds=0.0, cycle_gap_seconds=0.0),
    )


def run_figures(run: PlannedRun) -> ExperimentResult:
    """Twice the batch is half the joules and twice the speed, bf16 is 20 % better in both; cycles are 1 % apart."""
    batch = run.config.pytorch.batch_size if run.config.pytorch else 1
    better = 0.8 if run.config.precision == "bf16" else 1.0
    per_token_j = better / (batch or 1) * (1 + 0.01 * (run.cycle - 2))
    return make_result(
        measurement_config_hash=run.config_hash,
        avg_energy_per_token_j=per_token_j,
        total_energy_j=200 * per_token_j,
        avg_tokens_per_second=20.0 * (batch or 1) / better,
        effective_config=run.config.model_dump(mode="json"),
        model_name=run.config.model,
        config_name=run.title,
        cycle=run.cycle,
        measurement_warnings=["short_measurement_duration: the window was short"],
    )


def saved_study(
    directory: Path,
    study: StudyConfig,
    figures: Callable[[PlannedRun], ExperimentResult | None] = run_figures,
) -> Path:
    """The study in `directory` as its runner leaves it, without reports; a run without figures has failed."""
    directory.mkdir(parents=True, exist_ok=True)
    manifest = ManifestWriter(study, directory)
    for run in plan_runs(study):
        result = figures(run)
        if result is None:
            manifest.mark_failed(*run.key, "BackendError", "the <engine> gave up")
        else:
            path = save_result(result, directory)
            manifest.mark_completed(*run.key, path.relative_to(directory).as_posix(), None)
    manifest.mark_study_completed()
    write_study(
        study,
        directory,
        manifest.entries(),
        gaps=Gaps(0.0, 0.0),
        started_at=NOON,
        ran_s=3600.0,
        completed_at=NOON + timedelta(hours=1),
    )
    return directory


def large_study(directory: Path, study: StudyConfig) -> Path:
    """What a report reads of a finished study, without the thousand files that it does not."""
    directory.mkdir(parents=True, exist_ok=True)
    ManifestWriter(study, directory)
    results = [run_figures(run) for run in plan_runs(study)]
    to_parquet(results, directory / TABLE_FILE)
    summary = StudySummary(total_experiments=len(results), completed=len(results))
    statistics = summarise_configurations(results)
    files = [f"run_{number}/result.json" for number in range(len(results))]
    whole = StudyResult(
        study_id="large", started_at=NOON, completed_at=NOON, summary=summary, statistics=statistics, result_files=files
    )
    to_json(whole, directory / STUDY_FILE)
    return directory
