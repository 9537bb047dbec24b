"""One experiment, and a study of several, as validated and frozen data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from llenergymeasure.config.backend_configs import SECTIONS, PyTorchConfig, TensorRTConfig, VLLMConfig
from llenergymeasure.config.base import ConfigModel, NonBlankStr, reject, try_values
from llenergymeasure.config.crosschecks import experiment_problems
from llenergymeasure.config.rules import BackendConfig
from llenergymeasure.config.sections import (
    BaselineConfig,
    DecoderConfig,
    EnergyConfig,
    LoRAConfig,
    MeasurementConfig,
    SyntheticDatasetConfig,
    WarmupConfig,
)

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


def _dataset_kind(value: Any) -> str:
    return "synthetic" if isinstance(value, (dict, SyntheticDatasetConfig)) else "name"


Dataset = Annotated[
    Annotated[NonBlankStr, Tag("name")] | Annotated[SyntheticDatasetConfig, Tag("synthetic")],
    Discriminator(_dataset_kind),
]
"""A data set's name, or how to make one; told apart by shape, so that an error speaks of the form that was used."""


class ExperimentConfig(ConfigModel):
    """One model on one backend with one set of settings, to be measured once."""

    model: NonBlankStr = Field(description="Hub model id, local directory, or builtin/<name>.")
    backend: Literal["pytorch", "vllm", "tensorrt"] = Field(default="pytorch", description="Inference engine.")
    n: int = Field(
        default=100, ge=1, description="Prompts taken from the data set.", json_schema_extra=try_values(10, 100, 500)
    )
    dataset: Dataset = Field(
        default="aienergyscore",
        description="Bundled set, path of a .jsonl file, hf:<id> on the Hub, or synthetic prompts of exact lengths.",
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        default="bf16", description="Number format of weights and activations."
    )
    random_seed: int = Field(
        default=42, ge=0, le=2**32 - 1, description="Seed of every random number generator the run touches."
    )
    max_input_tokens: int = Field(
        default=512,
        ge=1,
        description="Longer prompts are cut at the end to this many tokens.",
        json_schema_extra=try_values(64, 128, 256),
    )
    max_output_tokens: int = Field(
        default=128,
        ge=1,
        description="Most tokens to generate per prompt.",
        json_schema_extra=try_values(32, 128, 256),
    )
    decoder: DecoderConfig = Field(default_factory=DecoderConfig, description="How the next token is chosen.")
    warmup: WarmupConfig = Field(default_factory=WarmupConfig, description="What runs before the window.")
    baseline: BaselineConfig = Field(default_factory=BaselineConfig, description="Idle power before loading.")
    energy: EnergyConfig = Field(default_factory=EnergyConfig, description="What measures the joules.")
    measurement: MeasurementConfig = Field(
        default_factory=MeasurementConfig, description="What counts as the window, and what is kept of it."
    )
    revision: NonBlankStr | None = Field(
        default=None, description="Branch, tag or commit of model and tokenizer on the Hub."
    )
    trust_remote_code: bool = Field(default=False, description="Run model code that comes from the Hub.")
    pytorch: PyTorchConfig | None = Field(default=None, description="Settings of the pytorch backend.")
    vllm: VLLMConfig | None = Field(default=None, description="Settings of the vllm backend.")
    tensorrt: TensorRTConfig | None = Field(default=None, description="Settings of the tensorrt backend.")
    lora: LoRAConfig | None = Field(default=None, description="Low-rank adapter.")
    passthrough_kwargs: dict[str, Any] | None = Field(
        default=None, description="Keyword arguments handed to the engine's constructor untouched."
    )
    output_dir: NonBlankStr | None = Field(default=None, description="Directory this experiment's result goes to.")

    @property
    def backend_config(self) -> BackendConfig:
        """The section of this experiment's backend; one of defaults where it is left out."""
        section: BackendConfig | None = getattr(self, self.backend)
        return SECTIONS[self.backend]() if section is None else section

    @classmethod
    def from_yaml(cls, path: str | Path) -> ExperimentConfig:
        """Load an experiment file.

        Raises:
            ConfigError: The file is missing, does not parse, or has unknown keys.
            pydantic.ValidationError: A value is wrong.
        """
        from llenergymeasure.config.loader import load_experiment_config  # the loader builds on this module

        return load_experiment_config(path)

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

    n_cycles: int = Field(default=1, ge=1, description="Times each experiment is run.")
    cycle_order: Literal["sequential", "interleaved", "shuffled"] = Field(
        default="sequential", description="AAABBB, ABABAB, or a fresh random order in each cycle."
    )
    config_gap_seconds: float | None = Field(
        default=None, ge=0.0, description="Seconds to cool down between experiments; null: the machine's value."
    )
    cycle_gap_seconds: float | None = Field(
        default=None, ge=0.0, description="Seconds to cool down between cycles; null: the machine's value."
    )
    shuffle_seed: int | None = Field(
        default=None, description="Seed of the shuffled order; null: made from the study's design hash."
    )
    experiment_timeout_seconds: float | None = Field(
        default=None, gt=0.0, description="Seconds after which an experiment is stopped; null: from its size."
    )
    max_consecutive_failures: int = Field(
        default=5, ge=1, description="Failures in a row after which the study gives up."
    )


class StudyConfig(ConfigModel):
    """The unique, resolved experiments of a study in order, and how to execute them."""

    experiments: list[ExperimentConfig] = Field(min_length=1, description="Unique experiments in order.")
    name: NonBlankStr | None = Field(default=None, description="Name of the study, used for its directory.")
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig, description="Repetition, order and gaps.")
    study_design_hash: str | None = Field(
        default=None, description="First 16 hex digits of the SHA-256 of the experiments."
    )
    skipped_configs: list[dict[str, Any]] = Field(
        default_factory=list, description="Grid points that are not valid, each with its reason."
    )


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
