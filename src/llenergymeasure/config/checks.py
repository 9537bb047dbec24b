"""Fields that are fine one by one but not together: one small function per rule, each yielding its problems.

What is merely ineffective (set, with the switch above it off) is told and not refused: switching warm-up off for a
trial should not mean deleting the rest of its section.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Final

from llenergymeasure.config.base import ConfigModel, Problem
from llenergymeasure.config.sections import BaselineConfig, ExperimentFields, SyntheticDatasetConfig, WarmupConfig
from llenergymeasure.config.ssot import (
    BACKENDS,
    CONTINUOUS_BATCHING,
    DECODER_PARAM_SUPPORT,
    DECODING_SUPPORT,
    LORA_SUPPORT,
    PRECISION_SUPPORT,
)


def experiment_problems(config: ExperimentFields) -> list[Problem]:
    """Every combination in `config` that cannot run as written."""
    return [problem for check in CHECKS for problem in check(config)]


def ineffective_settings(config: ExperimentFields) -> list[str]:
    """Every setting that is not at its default and has no effect, with the switch that would give it one."""
    return [f"{path} is set and has no effect while {switch}" for path, switch in _ineffective(config)]


def _section_matches_backend(config: ExperimentFields) -> Iterator[Problem]:
    """A section belongs to the backend of its name."""
    for name in BACKENDS:
        if name != config.backend and getattr(config, name) is not None:
            yield Problem(
                name,
                f"{name}: config section provided but backend={config.backend!r}. "
                f"Remove the {name}: section or set backend: {name}.",
            )


def _precision_is_supported(config: ExperimentFields) -> Iterator[Problem]:
    """The backend computes in this precision."""
    valid = PRECISION_SUPPORT[config.backend]
    if config.precision not in valid:
        yield Problem(
            "precision",
            f"precision: {config.precision!r} is not supported by backend={config.backend!r}. "
            f"Use one of: {', '.join(valid)}.",
        )


def _decoding_is_supported(config: ExperimentFields) -> Iterator[Problem]:
    """The backend knows the decoding strategy and every decoder parameter that is not at its default."""
    strategy = "greedy" if config.decoder.is_deterministic else "sampling"
    valid = DECODING_SUPPORT[config.backend]
    if strategy not in valid:
        yield Problem(
            "decoder.do_sample",
            f"decoder: {strategy} decoding is not supported by backend={config.backend!r}. "
            f"Supported: {', '.join(valid)}.",
        )
    supported = DECODER_PARAM_SUPPORT[config.backend]
    for name, value in _non_default_decoder_params(config):
        if name not in supported:
            others = [backend for backend in BACKENDS if name in DECODER_PARAM_SUPPORT[backend]]
            yield Problem(
                f"decoder.{name}",
                f"decoder.{name}: {value!r} is not supported by backend={config.backend!r}. "
                f"Remove it or use backend: {' or '.join(others)}.",
            )


def _sampling_params_need_sampling(config: ExperimentFields) -> Iterator[Problem]:
    """Without sampling there is nothing for temperature, top_k, top_p and min_p to act on.

    Temperature 0 with sampling on is the limit of sampling, where any filter keeps the chosen token: that is allowed.
    """
    if config.decoder.do_sample:
        return
    for name, value in _non_default_decoder_params(config):
        ignored = name in ("top_k", "top_p", "min_p") or (name == "temperature" and value != 0.0)
        if ignored:
            yield Problem(
                f"decoder.{name}",
                f"decoder.{name}: {value!r} has no effect with decoder.do_sample=False. "
                "Remove it or set decoder.do_sample: true.",
            )


def _min_new_tokens_fit(config: ExperimentFields) -> Iterator[Problem]:
    """Output cannot be forced longer than it may get."""
    least = config.decoder.min_new_tokens
    if least is not None and least > config.max_output_tokens:
        yield Problem(
            "decoder.min_new_tokens",
            f"decoder.min_new_tokens: {least} exceeds max_output_tokens={config.max_output_tokens}. "
            "Lower it or raise max_output_tokens.",
        )


def _dataset_agrees(config: ExperimentFields) -> Iterator[Problem]:
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


def _passthrough_is_free(config: ExperimentFields) -> Iterator[Problem]:
    """What has a field of its own is set there, once."""
    kwargs = config.passthrough_kwargs or {}
    taken = sorted(set(kwargs) & set(type(config).model_fields))
    if taken:
        yield Problem(
            "passthrough_kwargs",
            f"passthrough_kwargs keys collide with ExperimentConfig fields: {taken}. Use the named fields instead.",
        )
    section = getattr(config, config.backend)
    doubled = sorted(set(kwargs) & set(section.model_dump(exclude_none=True))) if section is not None else []
    if doubled:
        yield Problem(
            "passthrough_kwargs",
            f"passthrough_kwargs keys are already set in the {config.backend}: section: {doubled}. Keep one.",
        )


def _passthrough_is_portable(config: ExperimentFields) -> Iterator[Problem]:
    """Passed-through values are what JSON can hold: the config is hashed, written and sent to children as JSON."""
    for key, value in (config.passthrough_kwargs or {}).items():
        try:
            portable = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            portable = False
        if not portable:
            yield Problem(
                f"passthrough_kwargs.{key}",
                f"passthrough_kwargs.{key}: {value!r} cannot be written as JSON. "
                "Use strings, finite numbers, booleans, null, lists and mappings with string keys.",
            )


def _lora_is_supported(config: ExperimentFields) -> Iterator[Problem]:
    """The backend can load an adapter beside the weights."""
    if config.lora is not None and config.backend not in LORA_SUPPORT:
        yield Problem(
            "lora",
            f"lora: not supported with backend={config.backend!r}. Merge the adapter into the weights first "
            "(peft: merge_and_unload, then save_pretrained), name the merged directory as model: and remove lora:.",
        )


def _full_batch_needs_continuous_batching(config: ExperimentFields) -> Iterator[Problem]:
    """Only an engine that batches continuously has a time in which its batch is full."""
    if config.measurement.full_batch_only and config.backend not in CONTINUOUS_BATCHING:
        yield Problem(
            "measurement.full_batch_only",
            f"measurement.full_batch_only: True has no meaning with backend={config.backend!r}, which runs fixed "
            "batches. Use measurement.skip_first_seconds and skip_last_seconds, or "
            f"backend: {' or '.join(CONTINUOUS_BATCHING)}.",
        )


def _trace_needs_energy(config: ExperimentFields) -> Iterator[Problem]:
    """A trace is made of the meter's power samples."""
    if config.measurement.save_trace and config.energy.backend is None:
        yield Problem(
            "measurement.save_trace",
            "measurement.save_trace: True keeps power samples, and energy.backend: null takes none. Remove one.",
        )


def _tf32_needs_fp32(config: ExperimentFields) -> Iterator[Problem]:
    """TensorFloat-32 stands in for fp32 only."""
    if config.pytorch is not None and config.pytorch.allow_tf32 is not None and config.precision != "fp32":
        yield Problem(
            "pytorch.allow_tf32",
            f"pytorch.allow_tf32: {config.pytorch.allow_tf32} only acts on fp32 products, but "
            f"precision={config.precision!r}. Remove it or set precision: fp32.",
        )


def _flash_attention_needs_half_precision(config: ExperimentFields) -> Iterator[Problem]:
    """FlashAttention has no fp32 kernels."""
    kernel = config.pytorch.attn_implementation if config.pytorch is not None else None
    if config.precision == "fp32" and kernel is not None and kernel.startswith("flash_attention"):
        yield Problem(
            "pytorch.attn_implementation",
            f"pytorch.attn_implementation: {kernel} has no fp32 kernels. Use sdpa, or precision: bf16.",
        )


def _non_default_decoder_params(config: ExperimentFields) -> list[tuple[str, object]]:
    decoder = config.decoder
    fields = type(decoder).model_fields
    return [
        (name, getattr(decoder, name))
        for name in DECODER_PARAM_SUPPORT["pytorch"]
        if getattr(decoder, name) != fields[name].default
    ]


CHECKS: Final[tuple[Callable[[ExperimentFields], Iterator[Problem]], ...]] = (
    _section_matches_backend,
    _precision_is_supported,
    _decoding_is_supported,
    _sampling_params_need_sampling,
    _min_new_tokens_fit,
    _dataset_agrees,
    _passthrough_is_free,
    _passthrough_is_portable,
    _lora_is_supported,
    _full_batch_needs_continuous_batching,
    _trace_needs_energy,
    _tf32_needs_fp32,
    _flash_attention_needs_half_precision,
)
"""Every rule across fields; the first line of each docstring says it in words."""


def _ineffective(config: ExperimentFields) -> Iterator[tuple[str, str]]:
    warmup, baseline = config.warmup, config.baseline
    if not warmup.enabled:
        yield from _changed("warmup", warmup, set(WarmupConfig.model_fields) - {"enabled"}, "warmup.enabled is false")
    elif not warmup.convergence_detection:
        switch = "warmup.convergence_detection is false"
        yield from _changed("warmup", warmup, {"cv_threshold", "max_prompts", "window_size", "min_prompts"}, switch)
    durations = set(BaselineConfig.model_fields) - {"enabled"}
    if not baseline.enabled:
        yield from _changed("baseline", baseline, durations, "baseline.enabled is false")
    elif config.energy.backend is None:
        yield from _changed("baseline", baseline, durations, "energy.backend is null")


def _changed(section: str, model: ConfigModel, names: set[str], switch: str) -> Iterator[tuple[str, str]]:
    for name, field in type(model).model_fields.items():
        if name in names and getattr(model, name) != field.default:
            yield f"{section}.{name}", switch
