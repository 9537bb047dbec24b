"""One experiment and a study of several, as validated and frozen data; what has to go together; names for people.

What is merely ineffective (set, with the switch above it off) is told and not refused: switching warm-up off for a
trial should not mean deleting the rest of its section.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from llenergymeasure.config.base import ConfigModel, NonBlankStr, Problem, by_dotted_path
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
from llenergymeasure.config.ssot import (
    BACKENDS,
    BATCH_SIZE_FIELD,
    CONTINUOUS_BATCHING,
    DECODER_PARAM_SUPPORT,
    DECODING_SUPPORT,
    LORA_SUPPORT,
    PRECISION_SUPPORT,
    SECRET_NAMES,
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


class ExperimentConfig(ExperimentFields):
    """One model on one backend with one set of settings, to be measured once."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None:
            """Sections may be mappings, and places paths: more than the fields' types tell a type checker."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> ExperimentConfig:
        """Load an experiment file.

        Raises:
            ConfigError: The file is missing, does not parse, or has unknown keys.
            pydantic.ValidationError: A value is wrong.
        """
        from llenergymeasure.config.errors import experiment_data  # reading files is not for everyone who imports this
        from llenergymeasure.config.yaml_io import load_document

        return cls.model_validate(experiment_data(load_document(path), cls))

    def problems(self) -> Iterator[Problem]:
        """Every combination that cannot run as written."""
        for check in CHECKS:
            yield from check(self)


class ExecutionConfig(ConfigModel):
    """How a study's experiments are repeated, ordered and spaced."""

    n_cycles: int = Field(default=1, ge=1, le=100_000)
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
    silence_timeout_seconds: float | None = Field(default=None, gt=0.0)
    """Seconds without any sign of progress after which an experiment is stopped; null: from its batch."""
    max_consecutive_failures: int = Field(default=5, ge=1)
    """Failures in a row after which the study gives up."""


class StudyConfig(ConfigModel):
    """The unique, resolved experiments of a study in order, and how to execute them."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None:
            """As of an experiment."""

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


def _changed_decoder_params(config: ExperimentConfig) -> list[tuple[str, object]]:
    values = ((name, getattr(config.decoder, name)) for name in DECODER_PARAM_SUPPORT["pytorch"])
    return [(name, value) for name, value in values if value != DecoderConfig.model_fields[name].default]


def _or_another(backends: Iterable[str]) -> str:
    """The end of an advice: to take another backend."""
    return f", or use backend: {' or '.join(backends)}" if backends else ""


def _section_matches_backend(config: ExperimentConfig) -> Iterator[Problem]:
    """A section belongs to the backend of its name."""
    for name in BACKENDS:
        if name != config.backend and getattr(config, name) is not None:
            yield Problem(
                name,
                f"{name}: config section provided but backend={config.backend!r}. "
                f"Remove the {name}: section or set backend: {name}.",
            )


def _precision_is_supported(config: ExperimentConfig) -> Iterator[Problem]:
    """The backend computes in this precision."""
    valid = PRECISION_SUPPORT.get(config.backend)
    if valid is not None and config.precision not in valid:
        yield Problem(
            "precision",
            f"precision: {config.precision!r} is not supported by backend={config.backend!r}. "
            f"Use one of: {', '.join(valid)}.",
        )


def _decoding_is_supported(config: ExperimentConfig) -> Iterator[Problem]:
    """The backend knows the decoding strategy and every decoder parameter that is not at its default."""
    strategy = "greedy" if config.decoder.is_deterministic else "sampling"
    valid = DECODING_SUPPORT.get(config.backend)
    if valid is not None and strategy not in valid:
        yield Problem(
            "decoder.do_sample",
            f"decoder: {strategy} decoding is not supported by backend={config.backend!r}. "
            f"Supported: {', '.join(valid)}.",
        )
    supported = DECODER_PARAM_SUPPORT.get(config.backend)
    for name, value in _changed_decoder_params(config):
        if supported is not None and name not in supported:
            others = _or_another(backend for backend in BACKENDS if name in DECODER_PARAM_SUPPORT[backend])
            yield Problem(
                f"decoder.{name}",
                f"decoder.{name}: {value!r} is not supported by backend={config.backend!r}. Remove it{others}.",
            )


def _sampling_params_need_sampling(config: ExperimentConfig) -> Iterator[Problem]:
    """Without sampling there is nothing for temperature, top_k, top_p and min_p to act on.

    Temperature 0 with sampling on is the limit of sampling, where any filter keeps the chosen token: that is allowed.
    """
    if config.decoder.do_sample:
        return
    for name, value in _changed_decoder_params(config):
        if name in ("top_k", "top_p", "min_p") or (name == "temperature" and value != 0.0):
            yield Problem(
                f"decoder.{name}",
                f"decoder.{name}: {value!r} has no effect with decoder.do_sample=False. "
                "Remove it or set decoder.do_sample: true.",
            )


def _min_new_tokens_fit(config: ExperimentConfig) -> Iterator[Problem]:
    """Output cannot be forced longer than it may get."""
    least = config.decoder.min_new_tokens
    if least is not None and least > config.max_output_tokens:
        yield Problem(
            "decoder.min_new_tokens",
            f"decoder.min_new_tokens: {least} exceeds max_output_tokens={config.max_output_tokens}. "
            "Lower it or raise max_output_tokens.",
        )


def _dataset_agrees(config: ExperimentConfig) -> Iterator[Problem]:
    """A synthetic data set sets the token limits, and `n` takes from its pool."""
    dataset = config.dataset
    if not isinstance(dataset, SyntheticDatasetConfig):
        return
    if config.n > dataset.n:
        yield Problem(
            "n",
            f"n: {config.n} prompts asked for, but dataset.n={dataset.n}. Lower n or raise dataset.n to {config.n}.",
        )
    for limit, length in (("max_input_tokens", "input_len"), ("max_output_tokens", "output_len")):
        given, implied = getattr(config, limit), getattr(dataset, length)
        if given != implied:
            yield Problem(
                limit,
                f"{limit}: {given} contradicts dataset.{length}={implied}, which sets it. "
                f"Remove {limit} or make the two equal.",
            )


def _passthrough_is_free(config: ExperimentConfig) -> Iterator[Problem]:
    """What has a field of its own is set there, once."""
    kwargs = config.passthrough_kwargs or {}
    taken = sorted(set(kwargs) & set(type(config).model_fields))
    if taken:
        yield Problem(
            "passthrough_kwargs",
            f"passthrough_kwargs keys collide with ExperimentConfig fields: {taken}. Use the named fields instead.",
        )
    doubled = sorted(set(kwargs) & set(config.backend_config.model_dump(exclude_none=True)))
    if doubled:
        yield Problem(
            "passthrough_kwargs",
            f"passthrough_kwargs keys are already set in the {config.backend}: section: {doubled}. Keep one.",
        )


def _passthrough_is_portable(config: ExperimentConfig) -> Iterator[Problem]:
    """Passed-through values are what JSON can hold: the config is hashed, written and sent to children as JSON."""
    for key, value in (config.passthrough_kwargs or {}).items():
        try:
            written = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            portable = json.loads(written) == value
        except (TypeError, ValueError, RecursionError):  # ValueError: also half a character, and very long numbers
            portable = False
        if not portable:
            yield Problem(
                f"passthrough_kwargs.{key}",
                f"passthrough_kwargs.{key}: {value!r} cannot be written as JSON. "
                "Use strings, finite numbers, booleans, null, lists and mappings with string keys.",
            )


def _passthrough_holds_no_secret(config: ExperimentConfig) -> Iterator[Problem]:
    """A config is written into results and manifests; secrets come from the environment."""
    for path, value in by_dotted_path(config.passthrough_kwargs or {}):
        if path.rpartition(".")[2].lower() in SECRET_NAMES and isinstance(value, str):
            yield Problem(
                f"passthrough_kwargs.{path}",
                f"passthrough_kwargs.{path}: a secret must not stand in a config, which goes into every result. "
                "Remove it and set the environment variable HF_TOKEN.",
            )


def _lora_is_supported(config: ExperimentConfig) -> Iterator[Problem]:
    """The backend can load an adapter beside the weights."""
    if config.lora is not None and config.backend in BACKENDS and config.backend not in LORA_SUPPORT:
        yield Problem(
            "lora",
            f"lora: not supported with backend={config.backend!r}. Merge the adapter into the weights first "
            "(peft: merge_and_unload, then save_pretrained), name the merged directory as model: and remove lora:.",
        )


def _full_batch_needs_continuous_batching(config: ExperimentConfig) -> Iterator[Problem]:
    """Only an engine that batches continuously has a time in which its batch is full."""
    fixed_batches = config.backend in BACKENDS and config.backend not in CONTINUOUS_BATCHING
    if config.measurement.full_batch_only and fixed_batches:
        others = _or_another(CONTINUOUS_BATCHING)
        yield Problem(
            "measurement.full_batch_only",
            f"measurement.full_batch_only: True has no meaning with backend={config.backend!r}, which runs fixed "
            f"batches. Use measurement.skip_first_seconds and skip_last_seconds{others}.",
        )


def _trace_needs_energy(config: ExperimentConfig) -> Iterator[Problem]:
    """A trace is made of the meter's power samples."""
    if config.measurement.save_trace and config.energy.backend is None:
        yield Problem(
            "measurement.save_trace",
            "measurement.save_trace: True keeps power samples, and energy.backend: null takes none. Remove one.",
        )


def _tf32_needs_fp32(config: ExperimentConfig) -> Iterator[Problem]:
    """TensorFloat-32 stands in for fp32 only."""
    if config.pytorch is not None and config.pytorch.allow_tf32 is not None and config.precision != "fp32":
        yield Problem(
            "pytorch.allow_tf32",
            f"pytorch.allow_tf32: {config.pytorch.allow_tf32} only acts on fp32 products, but "
            f"precision={config.precision!r}. Remove it or set precision: fp32.",
        )


def _flash_attention_needs_half_precision(config: ExperimentConfig) -> Iterator[Problem]:
    """FlashAttention has no fp32 kernels."""
    kernel = config.pytorch.attn_implementation if config.pytorch is not None else None
    if config.precision == "fp32" and kernel is not None and kernel.startswith("flash_attention"):
        yield Problem(
            "pytorch.attn_implementation",
            f"pytorch.attn_implementation: {kernel} has no fp32 kernels. Use sdpa, or precision: bf16.",
        )


CHECKS: Final[tuple[Callable[[ExperimentConfig], Iterator[Problem]], ...]] = (
    _section_matches_backend,
    _precision_is_supported,
    _decoding_is_supported,
    _sampling_params_need_sampling,
    _min_new_tokens_fit,
    _dataset_agrees,
    _passthrough_is_free,
    _passthrough_is_portable,
    _passthrough_holds_no_secret,
    _lora_is_supported,
    _full_batch_needs_continuous_batching,
    _trace_needs_energy,
    _tf32_needs_fp32,
    _flash_attention_needs_half_precision,
)
"""Every rule across fields; the first line of each docstring says it in words."""


_MAX_SHOWN: Final = 80
"""Characters of a name in a title."""


def model_short_name(model: str) -> str:
    """The last part of a model ID or path, in lower case and not too long: `Qwen/Qwen2.5-0.5B` is `qwen2.5-0.5b`."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower() or model
    return name if len(name) <= _MAX_SHOWN else f"{name[: _MAX_SHOWN - 1]}…"


def experiment_title(config: ExperimentConfig) -> str:
    """One line that tells an experiment from its neighbours: `qwen2.5-0.5b / pytorch / bf16 / batch 8`."""
    parts = [model_short_name(config.model), config.backend, config.precision]
    batch = config.backend_config.given_batch
    if batch is not None:
        parts.append(f"batch {batch}")
    return " / ".join(parts)


def study_titles(experiments: Sequence[ExperimentConfig]) -> list[str]:
    """One line per experiment of a study: its title, then the other fields in which the study's experiments differ.

    `qwen2.5-0.5b / pytorch / bf16 / batch 8 / decoder.temperature=0.5`. A field of one backend is compared among the
    experiments of that backend. A field that is not set is left out: its neighbours show theirs.
    """
    flat = [
        {
            path: value if isinstance(value, str) else _written(value)
            for path, value in by_dotted_path(config.model_dump(mode="json", exclude_none=True))
        }
        for config in experiments
    ]
    models = {config.model for config in experiments}
    shown = {"backend", "precision", *BATCH_SIZE_FIELD.values()}  # in every title, however they are set
    if len({model_short_name(model) for model in models}) == len(models):
        shown.add("model")
    varying = {backend: sorted(_varying(flat, backend) - shown) for backend in {c.backend for c in experiments}}
    return [
        " / ".join(
            [experiment_title(config), *(f"{key}={fields[key]}" for key in varying[config.backend] if key in fields)]
        )
        for config, fields in zip(experiments, flat, strict=True)
    ]


def _written(value: Any) -> str:
    """A value as YAML would have it."""
    return json.dumps(value) if isinstance(value, (list, dict)) else _written_scalar(value)


@lru_cache(maxsize=1024, typed=True)
def _written_scalar(value: object) -> str:
    return json.dumps(value)


def _varying(flat: Sequence[dict[str, str]], backend: str) -> set[str]:
    """The fields that tell experiments of `backend` from others: its own ones, and those of all backends."""
    values: dict[str, set[str | None]] = defaultdict(set)
    for key in {key for fields in flat for key in fields}:
        section = key.partition(".")[0]
        values[key].update(f.get(key) for f in flat if section not in BACKENDS or f["backend"] == backend)
    return {key for key, found in values.items() if len(found) > 1}
