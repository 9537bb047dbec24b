"""From files, flags and machine defaults to validated configurations.

Problems come in three stages, each complete: unknown keys (`ConfigError`), wrong values and impossible combinations
(Pydantic's `ValidationError`, unchanged).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llenergymeasure.config.base import deep_merge, set_dotted, unwrap_dataset
from llenergymeasure.config.engines import no_batch_setting
from llenergymeasure.config.errors import experiment_data, reject_unknown, unknown_keys
from llenergymeasure.config.grid import resolve_study
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.ssot import BATCH_SIZE_FIELD, BATCH_SIZE_OVERRIDE
from llenergymeasure.config.yaml_io import LoadedDocument, load_document
from llenergymeasure.exceptions import ConfigError

__all__ = [
    "deep_merge",
    "load_experiment_config",
    "load_study_config",
    "resolve_experiment",
    "resolve_study",
    "with_overrides",
]


def load_experiment_config(
    path: str | Path | None = None,
    cli_overrides: Mapping[str, Any] | None = None,
    user_config_defaults: Mapping[str, Any] | None = None,
) -> ExperimentConfig:
    """Load one experiment; flags beat the file, the file beats the machine's defaults.

    Whether the file or a flag named a backend shows in `config.model_fields_set`.

    Args:
        path: YAML or JSON file; `None` when flags say everything.
        cli_overrides: Fields by (dotted) name; a `None` value is no override. `batch_size` is the batch setting of the
            chosen backend.
        user_config_defaults: Machine settings that may enter an experiment: `output_dir` only.

    Raises:
        ConfigError: The file cannot be used, or a key is unknown.
        pydantic.ValidationError: A value or a combination of values is wrong.
    """
    document = None if path is None else load_document(path)
    return resolve_experiment(document, cli_overrides or {}, user_config_defaults or {})


def resolve_experiment(
    document: LoadedDocument | None, overrides: Mapping[str, Any], defaults: Mapping[str, Any]
) -> ExperimentConfig:
    """As `load_experiment_config`, of a file that is read already."""
    data = {} if document is None else experiment_data(document, ExperimentConfig)
    foreign = sorted(set(defaults) - {"output_dir"})
    if foreign:
        raise ConfigError(
            f"user config defaults {foreign} cannot enter an experiment: only output_dir can. "
            "Other machine settings act when the experiment runs."
        )
    machine = {name: value for name, value in defaults.items() if value is not None}
    return ExperimentConfig.model_validate(
        deep_merge(deep_merge(machine, unwrap_dataset(data)), _nested(overrides, data))
    )


def load_study_config(path: str | Path, cli_overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Load a study and resolve its sweep; a plain experiment file is a study of one.

    Args:
        cli_overrides: Fields by (dotted) name, applied to every experiment; `execution.*` and `name` to the study.

    Raises:
        ConfigError: The file cannot be used, a key is unknown, a flag contradicts a swept key, or no point is valid.
        pydantic.ValidationError: A value under `execution:` is wrong.
    """
    return resolve_study(load_document(path), cli_overrides or {})


def with_overrides(config: ExperimentConfig, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """A new experiment: `config` with some fields, by (dotted) name, replaced and validated anew.

    Mappings are merged, `None` is no override.

    Raises:
        ConfigError: A name is unknown.
        pydantic.ValidationError: A value or a combination of values is wrong.
    """
    data = config.model_dump(exclude_unset=True)
    return ExperimentConfig.model_validate(deep_merge(data, _nested(overrides, data)))


def _nested(overrides: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """`{"pytorch.batch_size": 8}` as `{"pytorch": {"batch_size": 8}}`, without what is `None`; all keys checked.

    They will lie over `data`, which says what backend is chosen where they do not.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if BATCH_SIZE_OVERRIDE in given:
        backend = given.get("backend", data.get("backend", ExperimentConfig.model_fields["backend"].default))
        if not isinstance(backend, str) or backend not in BATCH_SIZE_FIELD:
            raise ConfigError(no_batch_setting(backend))
        given[BATCH_SIZE_FIELD[backend]] = given.pop(BATCH_SIZE_OVERRIDE)
    nested: dict[str, Any] = {}
    for name, value in given.items():
        set_dotted(nested, name, value)
    reject_unknown(unknown_keys(nested, ExperimentConfig))
    return unwrap_dataset(nested)
