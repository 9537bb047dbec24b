"""The experiment of the study benchmark: nothing is loaded, nothing runs, and a result comes back."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.domain.experiment import ExperimentResult, compute_measurement_config_hash
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.job import Job, MeasuredRun, read_job, run_to_json


def measure_nothing(directory: Path, link: ParentLink) -> str:
    job = read_job(directory)
    return run_to_json(MeasuredRun(nothing_of(job), Artefacts(), job.baselines), directory)


def nothing_of(job: Job) -> ExperimentResult:
    now = datetime.now(timezone.utc)
    return ExperimentResult(
        experiment_id="noop",
        measurement_config_hash=compute_measurement_config_hash(job.config),
        measurement_methodology="total",
        model_name=job.config.model,
        total_tokens=2,
        total_energy_j=1.0,
        total_inference_time_sec=1.0,
        avg_tokens_per_second=1.0,
        avg_energy_per_token_j=1.0,
        total_flops=1.0,
        start_time=now,
        end_time=now,
    )
