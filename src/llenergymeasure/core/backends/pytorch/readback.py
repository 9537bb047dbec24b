"""What was really loaded and the memory it takes, asked of the loaded objects rather than of the config behind them.

The device is asked nothing inside the window.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from transformers import GenerationConfig, PreTrainedModel

from llenergymeasure.core.backends.protocol import LoadedModel, MemoryStats
from llenergymeasure.core.backends.pytorch.loading import (
    DRAFTING_FIELDS,
    DTYPES,
    GENERATION_FIELDS,
    QUANTISATION_FIELDS,
    Assistant,
    LoadedParts,
)
from llenergymeasure.core.model.memory import MB, kv_cache_bytes
from llenergymeasure.core.model.parameters import count_loaded

_ENGINE_DEFAULTS: Final = {"use_cache": True, "cache_implementation": "dynamic", "num_beams": 1}
"""What transformers does where a `GenerationConfig` field is `None`."""

_PRECISIONS: Final = {dtype: name for name, dtype in DTYPES.items()}


def describe_model(parts: LoadedParts, batch_size: int) -> LoadedModel:
    """Read everything back from `parts`, which are asked for `batch_size` prompts at a time."""
    model = parts.model
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
        parameters=count_loaded(model),
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
    yield from _set_fields("decoder", generation, "do_sample", *sampling, "repetition_penalty")
    yield from ((f"pytorch.{name}", value) for name, value in _ENGINE_DEFAULTS.items())
    yield from _set_fields("pytorch", generation, *GENERATION_FIELDS)
    yield "generation.eos_token_id", generation.eos_token_id
    yield "generation.pad_token_id", generation.pad_token_id


def _quantisation_settings(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    settings = quantizer.quantization_config.to_dict()
    yield "quantization", settings.get("quant_method")
    yield from ((f"pytorch.{name}", settings[name]) for name in QUANTISATION_FIELDS if name in settings)


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
    yield from _set_fields("pytorch", assistant.model.generation_config, *DRAFTING_FIELDS)


def _set_fields(section: str, generation: GenerationConfig, *names: str) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = getattr(generation, name, None)
        if value is not None:
            yield f"{section}.{name}", value


def _device_names(model: PreTrainedModel) -> tuple[str, ...]:
    devices = {parameter.device for parameter in model.parameters()}
    gpus = sorted(device.index or 0 for device in devices if device.type == "cuda")
    return tuple(torch.cuda.get_device_name(index) for index in gpus) if gpus else ("CPU",)


PROC: Final = Path("/proc/self")
RESET_PEAK_RSS: Final = "5"
"""Written to `/proc/self/clear_refs`, it makes the kernel start a new peak of the resident set (proc(5))."""


class MemoryMeter:
    """Peak memory, weights and key-value cache of one loaded model."""

    def __init__(self, model: PreTrainedModel) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.gpu_indices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
        self._model_mb = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MB
        self._config = model.config.to_dict()
        self._value_bytes = torch.empty((), dtype=model.dtype).element_size()
        self._peak_is_ours = False
        self._largest_cache_bytes: float | None = None

    def reset_peak(self) -> None:
        """Start a new peak; on the CPU only where the kernel lets a process do that."""
        self._largest_cache_bytes = None
        for index in self.gpu_indices:
            torch.cuda.reset_peak_memory_stats(index)
        if not self.gpu_indices:
            try:
                (PROC / "clear_refs").write_text(RESET_PEAK_RSS)
            except OSError:
                self._peak_is_ours = False
            else:
                self._peak_is_ours = True

    def note_batch(self, rows: int, tokens: int) -> None:
        """Remember the size of a batch's key-value cache.

        Args:
            rows: Sequences in the cache, beams included.
            tokens: Positions per sequence, padding included.
        """
        size = kv_cache_bytes(self._config, rows, tokens, self._value_bytes)
        if size is not None:
            self._largest_cache_bytes = max(size, self._largest_cache_bytes or 0)

    def stats(self) -> MemoryStats:
        """The figures since the last reset. On the CPU, the peak is the process's resident memory."""
        return MemoryStats(
            peak_mb=self._peak_mb(),
            model_mb=self._model_mb,
            kv_cache_mb=None if self._largest_cache_bytes is None else self._largest_cache_bytes / MB,
        )

    def _peak_mb(self) -> float | None:
        if self.gpu_indices:
            return float(sum(torch.cuda.max_memory_allocated(index) for index in self.gpu_indices)) / MB
        return _peak_rss_mb() if self._peak_is_ours else None


def _peak_rss_mb() -> float | None:
    """Highest resident memory of this process in MB since the last reset; `None` where the kernel hides it."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", (PROC / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 / MB if match else None
