"""What was really loaded, asked of the loaded objects themselves rather than of the config that they came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from transformers import GenerationConfig, PreTrainedModel

from llenergymeasure.core.backends.protocol import LoadedModel
from llenergymeasure.core.backends.pytorch.loading import DTYPES, GENERATION_FIELDS, Assistant, LoadedParts
from llenergymeasure.core.model.matmul_params import count_loaded

_ENGINE_DEFAULTS: Final = {"use_cache": True, "cache_implementation": "dynamic", "num_beams": 1}
"""What transformers does where a `GenerationConfig` field is `None`."""

_PRECISIONS: Final = {dtype: name for name, dtype in DTYPES.items()}


def describe_model(parts: LoadedParts, batch_size: int) -> LoadedModel:
    """Read everything back from `parts`.

    Args:
        parts: The loaded model and its companions.
        batch_size: Prompts per call of `generate`.
    """
    model = parts.model
    count = count_loaded(model)
    settings = {
        "precision": _PRECISIONS.get(model.dtype, str(model.dtype)),
        "pytorch.batch_size": batch_size,
        **dict(_engine_settings(parts)),
        **dict(_generation_settings(model.generation_config)),
        **dict(_quantisation_settings(model)),
        **dict(_adapter_settings(parts)),
        **(dict(_assistant_settings(parts.assistant)) if parts.assistant is not None else {}),
    }
    return LoadedModel(
        settings=settings,
        revision=parts.source.revision,
        active_matmul_params=count.params,
        params_note=count.note,
        params_confidence=count.confidence,
        context_length=parts.decoding.context_length,
        device_names=_device_names(model),
    )


def _engine_settings(parts: LoadedParts) -> Iterator[tuple[str, Any]]:
    model = parts.model
    yield "architecture", type(model).__name__
    yield "pytorch.device", model.device.type
    device_map = getattr(model, "hf_device_map", {})
    if len(set(device_map.values())) > 1:
        yield "pytorch.device_map", {name: str(place) for name, place in device_map.items()}
    yield "pytorch.attn_implementation", model.config._attn_implementation
    yield "pytorch.torch_compile", parts.is_compiled
    if model.device.type == "cuda" and model.dtype is torch.float32:
        yield "pytorch.allow_tf32", torch.get_float32_matmul_precision() != "highest"


def _generation_settings(generation: GenerationConfig) -> Iterator[tuple[str, Any]]:
    sampling = ("temperature", "top_k", "top_p", "min_p") if generation.do_sample else ()
    for name in ("do_sample", *sampling, "repetition_penalty"):
        value = getattr(generation, name, None)
        if value is not None:
            yield f"decoder.{name}", value
    for name in GENERATION_FIELDS:
        value = getattr(generation, name, None)
        value = _ENGINE_DEFAULTS.get(name) if value is None else value
        if value is not None:
            yield f"pytorch.{name}", value
    yield "generation.eos_token_id", generation.eos_token_id
    yield "generation.pad_token_id", generation.pad_token_id


def _quantisation_settings(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    settings = quantizer.quantization_config.to_dict()
    yield "quantization", settings.get("quant_method")
    for name in (
        "load_in_4bit",
        "load_in_8bit",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
    ):
        if name in settings:
            yield f"pytorch.{name}", settings[name]


def _adapter_settings(parts: LoadedParts) -> Iterator[tuple[str, Any]]:
    if parts.adapter is None:
        return
    config = parts.adapter.active_peft_config
    yield "lora.type", config.peft_type.value
    yield "lora.rank", getattr(config, "r", None)
    yield "lora.alpha", getattr(config, "lora_alpha", None)
    yield "lora.target_modules", sorted(config.target_modules or ())


def _assistant_settings(assistant: Assistant) -> Iterator[tuple[str, Any]]:
    yield "pytorch.assistant_model", assistant.model.name_or_path
    generation = assistant.model.generation_config
    for name in ("num_assistant_tokens", "num_assistant_tokens_schedule"):
        value = getattr(generation, name)
        if value is not None:
            yield f"pytorch.{name}", value


def _device_names(model: PreTrainedModel) -> tuple[str, ...]:
    devices = {parameter.device for parameter in model.parameters()}
    gpus = sorted(device.index or 0 for device in devices if device.type == "cuda")
    return tuple(torch.cuda.get_device_name(index) for index in gpus) if gpus else ("CPU",)
