"""From files, flags and machine defaults to validated configurations.

Problems come in three stages, each complete: unknown keys (`ConfigError`), wrong values and impossible combinations
(Pydantic's `ValidationError`, unchanged).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from llenergymeasure.config.errors import problem_report
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.schema import UnknownField, unknown_fields
from llenergymeasure.config.ssot import BATCH_SIZE_FIELD
from llenergymeasure.config.yaml_io import LoadedDocument, load_document
from llenergymeasure.exceptions import ConfigError

BATCH_SIZE_OVERRIDE: Final = "batch_size"
"""Override key that means the batch setting of whichever backend is chosen (`--batch-size`)."""

_STUDY_ONLY_KEYS: Final = ("sweep", "experiments", "execution", "base", "name")


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
    document = load_experiment_document(path) if path is not None else None
    defaults = _machine_defaults(user_config_defaults or {})
    data = document.data if document is not None else {}
    overrides = nest_overrides(cli_overrides or {}, backend_of=_backend_chooser(data))
    merged = deep_merge(deep_merge(defaults, unwrap_dataset(data)), overrides)
    return ExperimentConfig.model_validate(merged)


def load_study_config(path: str | Path, cli_overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Load a study and resolve its sweep; a plain experiment file is a study of one.

    Args:
        path: YAML or JSON file.
        cli_overrides: Fields by (dotted) name, applied to every experiment; `execution.*` and `name` to the study.

    Raises:
        ConfigError: The file cannot be used, a key is unknown, a flag contradicts a swept key, or no point is valid.
        pydantic.ValidationError: A value under `execution:` is wrong.
    """
    from llenergymeasure.config.grid import resolve_study  # builds on this module

    return resolve_study(load_document(path), cli_overrides or {})


def with_overrides(config: ExperimentConfig, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """`config` with some fields changed, validated anew.

    Args:
        config: An experiment; not changed.
        overrides: Fields by (dotted) name; mappings are merged, `None` is no override.

    Raises:
        ConfigError: A name is unknown.
        pydantic.ValidationError: A value or a combination of values is wrong.
    """
    data = config.model_dump(exclude_unset=True)
    return ExperimentConfig.model_validate(
        deep_merge(data, nest_overrides(overrides, backend_of=_backend_chooser(data)))
    )


def load_experiment_document(path: str | Path) -> LoadedDocument:
    """Read an experiment file, check its keys, and keep its lines for whoever reports an error later.

    Raises:
        ConfigError: The file cannot be read or parsed, is a study, or has unknown keys (all of them are listed).
    """
    document = load_document(path)
    if is_study_document(document.data):
        raise ConfigError(
            f"{document.path}: this is a study (it has sweep: or experiments:), not a single experiment. "
            "Run it with llem run or run_study."
        )
    data = {key: value for key, value in document.data.items() if key != "version"}
    reject_unknown(unknown_fields(data), document)
    return LoadedDocument(data, document.source_map, document.path)


def is_study_document(data: Mapping[str, Any]) -> bool:
    """Whether a document describes several experiments rather than one."""
    return "sweep" in data or "experiments" in data


def deep_merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`: mappings are merged key by key, anything else replaces. Neither argument is changed."""
    merged = copy.deepcopy(dict(base))
    for key, value in overlay.items():
        existing = merged.get(key)
        if isinstance(existing, Mapping) and isinstance(value, Mapping):
            merged[key] = deep_merge(existing, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def nest_overrides(overrides: Mapping[str, Any], backend_of: Callable[[Any], str]) -> dict[str, Any]:
    """Turn `{"pytorch.batch_size": 8}` into `{"pytorch": {"batch_size": 8}}`, leaving out what is `None`.

    Args:
        overrides: Values by dotted name; `batch_size` stands for the chosen backend's batch setting.
        backend_of: Gives the chosen backend from the value of an overriding `backend`, or `None`.

    Raises:
        ConfigError: A name is unknown, or two names claim the same field.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if BATCH_SIZE_OVERRIDE in given:
        field = BATCH_SIZE_FIELD[backend_of(given.get("backend"))]
        given[field] = given.pop(BATCH_SIZE_OVERRIDE)
    nested: dict[str, Any] = {}
    for name, value in given.items():
        set_dotted(nested, name, value)
    reject_unknown(unknown_fields(nested))
    return unwrap_dataset(nested)


def set_dotted(data: dict[str, Any], name: str, value: Any) -> None:
    """Put `value` at a dotted path, making the mappings on the way.

    Raises:
        ConfigError: Something else than a mapping is in the way.
    """
    *parents, leaf = name.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {name!r} contradicts the override of {parent!r}. Give one of the two.")
    if leaf in data:
        raise ConfigError(f"override {name!r} is given twice, once inside another one. Give it once.")
    data[leaf] = copy.deepcopy(value)


def unwrap_dataset(data: Mapping[str, Any]) -> dict[str, Any]:
    """`dataset: {synthetic: {…}}` in its flat form, so that two sources of it can be merged."""
    dataset = data.get("dataset")
    if isinstance(dataset, Mapping) and isinstance(dataset.get("synthetic"), Mapping):
        beside = {key: value for key, value in dataset.items() if key != "synthetic"}
        return {**data, "dataset": deep_merge(dataset["synthetic"], beside)}
    return dict(data)


def reject_unknown(unknown: list[UnknownField], document: LoadedDocument | None = None) -> None:
    """Report unknown keys, all at once.

    Raises:
        ConfigError: There are any; one line each, with file and line where there is a file.
    """
    if unknown:
        raise ConfigError(problem_report([_unknown_line(field, document) for field in unknown]))


def _unknown_line(field: UnknownField, document: LoadedDocument | None) -> str:
    message = field.message
    if len(field.path) == 1 and field.path[0] in _STUDY_ONLY_KEYS:
        message = f"unknown field {field.path[0]!r}: it belongs to a study, which has sweep: or experiments:."
    return f"{document.where(field.path)}: {message}" if document is not None else message


def _machine_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    foreign = sorted(set(defaults) - {"output_dir"})
    if foreign:
        raise ConfigError(
            f"user config defaults {foreign} cannot enter an experiment: only output_dir can. "
            "Other machine settings act when the experiment runs."
        )
    return {name: value for name, value in defaults.items() if value is not None}


def _backend_chooser(data: Mapping[str, Any]) -> Callable[[Any], str]:
    def choose(override: Any) -> str:
        chosen = (
            override if override is not None else data.get("backend", ExperimentConfig.model_fields["backend"].default)
        )
        if not isinstance(chosen, str) or chosen not in BATCH_SIZE_FIELD:
            raise ConfigError(f"batch_size: backend {chosen!r} is unknown. Use one of: {', '.join(BATCH_SIZE_FIELD)}.")
        return chosen

    return choose
