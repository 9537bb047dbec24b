"""Configurations while they are still mappings: keys checked, laid over each other, values put at dotted paths."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from llenergymeasure.config.errors import UnknownKey, problem_report, unknown_keys
from llenergymeasure.config.ssot import BATCH_SIZE_FIELD
from llenergymeasure.config.yaml_io import LoadedDocument
from llenergymeasure.exceptions import ConfigError

_STUDY_ONLY_KEYS: Final = ("sweep", "experiments", "execution", "base", "name")


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


def batch_size_field(backend: Any) -> str:
    """The field that `BATCH_SIZE_OVERRIDE` means on `backend`.

    Raises:
        ConfigError: There is no such backend.
    """
    if not isinstance(backend, str) or backend not in BATCH_SIZE_FIELD:
        raise ConfigError(f"batch_size: backend {backend!r} is unknown. Use one of: {', '.join(BATCH_SIZE_FIELD)}.")
    return BATCH_SIZE_FIELD[backend]


def unwrap_dataset(data: Mapping[str, Any]) -> dict[str, Any]:
    """`dataset: {synthetic: {…}}` in its flat form, so that two sources of it can be merged."""
    dataset = data.get("dataset")
    if isinstance(dataset, Mapping) and isinstance(dataset.get("synthetic"), Mapping):
        beside = {key: value for key, value in dataset.items() if key != "synthetic"}
        return {**data, "dataset": deep_merge(dataset["synthetic"], beside)}
    return dict(data)


def is_study_document(data: Mapping[str, Any]) -> bool:
    """Whether a document describes several experiments rather than one."""
    return "sweep" in data or "experiments" in data


def experiment_data(document: LoadedDocument, model: type[BaseModel]) -> dict[str, Any]:
    """What an experiment file says, its keys checked against the model of an experiment.

    Raises:
        ConfigError: The file is a study, or has unknown keys (all of them are listed).
    """
    if is_study_document(document.data):
        raise ConfigError(
            f"{document.path}: this is a study (it has sweep: or experiments:), not a single experiment. "
            "Run it with llem run or run_study."
        )
    data = {key: value for key, value in document.data.items() if key != "version"}
    reject_unknown(unknown_keys(data, model), document)
    return data


def reject_unknown(unknown: Sequence[UnknownKey], document: LoadedDocument | None = None) -> None:
    """Report unknown keys, all at once.

    Raises:
        ConfigError: There are any; one line each, with file and line where there is a file.
    """
    if unknown:
        raise ConfigError(problem_report([_unknown_line(key, document) for key in unknown]))


def _unknown_line(key: UnknownKey, document: LoadedDocument | None) -> str:
    message = key.message
    if len(key.path) == 1 and key.path[0] in _STUDY_ONLY_KEYS:
        message = f"unknown field {key.path[0]!r}: it belongs to a study, which has sweep: or experiments:."
    return f"{document.where(key.path)}: {message}" if document is not None else message
