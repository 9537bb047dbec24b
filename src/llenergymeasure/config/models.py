"""One experiment, and a study of several, as validated and frozen data; and their short names, for people."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from llenergymeasure.config.base import ConfigModel, NonBlankStr, by_dotted_path, reject
from llenergymeasure.config.checks import experiment_problems
from llenergymeasure.config.sections import (
    BaselineConfig,
    DecoderConfig,
    EnergyConfig,
    ExperimentFields,
    LoRAConfig,
    MeasurementConfig,
    SyntheticDatasetConfig,
    WarmupConfig,
)
from llenergymeasure.config.ssot import BATCH_SIZE_FIELD

__all__ = [
    "BaselineConfig",
    "DecoderConfig",
    "EnergyConfig",
    "ExecutionConfig",
    "ExperimentConfig",
    "LoRAConfig",
    "MeasurementConfig",
    "StudyConfig",
    "SyntheticDatasetConfig",
    "WarmupConfig",
]

_IN_EVERY_TITLE: Final = frozenset({"backend", "precision", *BATCH_SIZE_FIELD.values()})
"""Fields that `experiment_title` shows, however they are set."""


class ExperimentConfig(ExperimentFields):
    """One model on one backend with one set of settings, to be measured once."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> ExperimentConfig:
        """Load an experiment file.

        Raises:
            ConfigError: The file is missing, does not parse, or has unknown keys.
            pydantic.ValidationError: A value is wrong.
        """
        from llenergymeasure.config.merge import experiment_data  # reading files is not for everyone who imports this
        from llenergymeasure.config.yaml_io import load_document

        return cls.model_validate(experiment_data(load_document(path), cls))

    @model_validator(mode="before")
    @classmethod
    def _follow_synthetic_dataset(cls, data: Any) -> Any:
        return _with_dataset_limits(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        reject(experiment_problems(self))
        return self


class ExecutionConfig(ConfigModel):
    """How a study's experiments are repeated, ordered and spaced."""

    n_cycles: int = Field(default=1, ge=1)
    """Times each experiment is run."""
    cycle_order: Literal["sequential", "interleaved", "shuffled"] = "sequential"
    """AAABBB, ABABAB, or a fresh random order in each cycle."""
    config_gap_seconds: float | None = Field(default=None, ge=0.0)
    """Seconds to cool down between experiments; null: the machine's value."""
    cycle_gap_seconds: float | None = Field(default=None, ge=0.0)
    """Seconds to cool down between cycles; null: the machine's value."""
    shuffle_seed: int | None = None
    """Seed of the shuffled order; null: made from the study's design hash."""
    experiment_timeout_seconds: float | None = Field(default=None, gt=0.0)
    """Seconds after which an experiment is stopped; null: from its size."""
    max_consecutive_failures: int = Field(default=5, ge=1)
    """Failures in a row after which the study gives up."""


class StudyConfig(ConfigModel):
    """The unique, resolved experiments of a study in order, and how to execute them."""

    experiments: list[ExperimentConfig] = Field(min_length=1)
    """Unique experiments in order."""
    name: NonBlankStr | None = None
    """Name of the study, used for its directory."""
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig)
    """Repetition, order and gaps."""
    study_design_hash: str | None = None
    """First 16 hex digits of the SHA-256 of the experiments."""
    skipped_configs: list[dict[str, Any]] = Field(default_factory=list)
    """Grid points that are not valid, each with its reason."""


def model_short_name(model: str) -> str:
    """The last part of a model ID or path, in lower case: `Qwen/Qwen2.5-0.5B` becomes `qwen2.5-0.5b`."""
    return model.rstrip("/").rsplit("/", 1)[-1].lower() or model


def experiment_title(config: ExperimentConfig) -> str:
    """One line that tells an experiment from its neighbours: `qwen2.5-0.5b / pytorch / bf16 / batch 8`."""
    parts = [model_short_name(config.model), config.backend, config.precision]
    section = getattr(config, config.backend)
    batch = getattr(section, BATCH_SIZE_FIELD[config.backend].split(".")[1], None) if section is not None else None
    if batch is not None:
        parts.append(f"batch {batch}")
    return " / ".join(parts)


def study_titles(experiments: Sequence[ExperimentConfig]) -> list[str]:
    """One line per experiment of a study: its title, then the other fields in which the study's experiments differ.

    `qwen2.5-0.5b / pytorch / bf16 / batch 8 / decoder.temperature=0.5`. A field of one backend is compared among the
    experiments of that backend. A field that is not set is left out: its neighbours show theirs.
    """
    flat = [_in_words(config.model_dump(mode="json", exclude_none=True)) for config in experiments]
    shown = _IN_EVERY_TITLE | (set() if _short_names_differ(experiments) else {"model"})
    varying = {backend: sorted(_varying(flat, backend) - shown) for backend in {c.backend for c in experiments}}
    return [
        " / ".join(
            [experiment_title(config), *(f"{key}={fields[key]}" for key in varying[config.backend] if key in fields)]
        )
        for config, fields in zip(experiments, flat, strict=True)
    ]


def _with_dataset_limits(data: dict[str, Any]) -> dict[str, Any]:
    """Unwrap `dataset: {synthetic: …}` and let a synthetic data set fill the limits that were left out."""
    dataset = data.get("dataset")
    if isinstance(dataset, dict) and set(dataset) == {"synthetic"} and isinstance(dataset["synthetic"], dict):
        dataset = dataset["synthetic"]
        data = {**data, "dataset": dataset}
    if isinstance(dataset, SyntheticDatasetConfig):
        dataset = dataset.model_dump()
    if not isinstance(dataset, dict):
        return data
    fields = SyntheticDatasetConfig.model_fields
    implied = {
        "n": dataset.get("n"),
        "max_input_tokens": dataset.get("input_len", fields["input_len"].default),
        "max_output_tokens": dataset.get("output_len", fields["output_len"].default),
    }
    return {**{name: value for name, value in implied.items() if type(value) is int and value >= 1}, **data}


def _short_names_differ(experiments: Sequence[ExperimentConfig]) -> bool:
    """Whether two of the models have the same short name."""
    models = {config.model for config in experiments}
    return len({model_short_name(model) for model in models}) < len(models)


def _varying(flat: Sequence[dict[str, str]], backend: str) -> set[str]:
    """The fields that tell experiments of `backend` from others: its own ones, and those of all backends."""
    values: dict[str, set[str | None]] = defaultdict(set)
    keys = {key for fields in flat for key in fields}
    for key in keys:
        section = key.partition(".")[0]
        values[key].update(f.get(key) for f in flat if section not in BATCH_SIZE_FIELD or f["backend"] == backend)
    return {key for key, found in values.items() if len(found) > 1}


def _in_words(data: dict[str, Any]) -> dict[str, str]:
    """Every field by its dotted path, its value as YAML would have it."""
    return {path: value if isinstance(value, str) else json.dumps(value) for path, value in by_dotted_path(data)}
