"""Results as runs in MLflow: settings as parameters, figures as metrics, the rest as tags, the file as an artifact.

MLflow is imported when it is used and in no other place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.export import flat_row, settings_in_effect

IDENTITY: Final = "llenergymeasure.experiment_id"
"""The tag by which a result is found again, so that none is there twice; a run cut short does not have it yet."""

MOST_AT_ONCE: Final = 100
"""Parameters that MLflow takes in one request."""

MOST_CHARACTERS: Final = 500
"""Longest value of a parameter that every release of MLflow takes."""


def log_runs(
    results: Iterable[tuple[Path, ExperimentResult]], tracking_uri: str | None, experiment: str
) -> Iterator[tuple[Path, str]]:
    """Make a run of each result that has none yet; yields the file and what became of it.

    Args:
        tracking_uri: `None`: what MLflow itself is set up for (`MLFLOW_TRACKING_URI`).

    Raises:
        PersistenceError: MLflow is not installed, or it refused.
    """
    try:
        import mlflow
    except ImportError as error:
        raise PersistenceError(
            f"MLflow cannot be imported ({error}). Install it with: pip install mlflow-skinny (or mlflow)"
        ) from error
    try:
        client = mlflow.MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        experiment_id = client.create_experiment(experiment) if found is None else found.experiment_id
        for path, result in results:
            known = client.search_runs([experiment_id], f"tags.`{IDENTITY}` = '{result.experiment_id}'", max_results=1)
            yield path, f"run {known[0].info.run_id} was there" if known else _log(client, experiment_id, path, result)
    except (mlflow.exceptions.MlflowException, OSError) as error:  # a store may be a directory
        raise PersistenceError(f"MLflow refused: {error}") from error


def _log(client: Any, experiment_id: str, path: Path, result: ExperimentResult) -> str:
    from mlflow.entities import Metric, Param, RunTag

    row = flat_row(result)
    end_ms = _ms(result.end_time)
    figures = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "cycle"}
    others = row.keys() - figures.keys() - {"effective_config"}
    texts = {f"llenergymeasure.{name}": str(row[name]) for name in sorted(others) if row[name] is not None}
    run = client.create_run(experiment_id, start_time=_ms(result.start_time), run_name=result.config_name)
    run_id = run.info.run_id
    client.log_batch(run_id, metrics=[Metric(name, float(value), end_ms, 0) for name, value in figures.items()])
    parameters = [Param(name, value) for name, value in _parameters(result).items()]
    for start in range(0, len(parameters), MOST_AT_ONCE):
        client.log_batch(run_id, params=parameters[start : start + MOST_AT_ONCE])
    client.log_artifact(run_id, str(path))
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in texts.items()])  # its identity with the last
    client.set_terminated(run_id, end_time=end_ms)
    return f"run {run_id}"


def _parameters(result: ExperimentResult) -> Mapping[str, str]:
    """The settings that were in effect, null ones left out."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in settings_in_effect(result).items()
        if value is not None
    }
    return {name: text[:MOST_CHARACTERS] for name, text in texts.items()}


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
