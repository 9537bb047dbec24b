"""What TensorRT-LLM tells of its memory: for how many tokens its key-value cache has room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llenergymeasure.core.model.kv_cache import kept_by_layer, kv_cache_bytes
from llenergymeasure.core.model.memory import MB
from llenergymeasure.core.model.parameters import attention_heads, first_int, text_part

BYTES_PER_VALUE: Final = {"float16": 2, "bfloat16": 2, "fp8": 1}
"""Width of a cached key or value by its type."""

QUANTISATION_FILE: Final = "hf_quant_config.json"
"""Where a checkpoint says how it is quantised, its cache included, if not in its `config.json`."""


def kv_cache_mb(llm: Any, config: Mapping[str, Any]) -> float | None:
    """Size of the key-value cache on all devices; `None` where it does not follow from the tokens that it holds.

    Args:
        config: The checkpoint's `config.json`.
    """
    tokens, width = _tokens(llm), BYTES_PER_VALUE.get(_type(llm.args, config))
    if tokens is None or width is None or not _keeps_everything(config):
        return None
    size = kv_cache_bytes(config, 1, tokens, width)
    return None if size is None else size * _copies(llm.args.tensor_parallel_size, config) / MB


def _tokens(llm: Any) -> int | None:
    """Tokens that it has room for, as `get_kv_cache_capacity` tells (1.3 and later)."""
    if not hasattr(llm, "get_kv_cache_capacity"):
        return None
    return llm.get_kv_cache_capacity().get("maxNumTokens")  # type: ignore[no-any-return]


def _type(arguments: Any, config: Mapping[str, Any]) -> str:
    """Type of what is cached; `auto`: a quantised checkpoint may bring another one than the model's."""
    given = str(getattr(arguments.kv_cache_config, "dtype", "auto"))
    is_quantised = "quantization_config" in config or (Path(arguments.model) / QUANTISATION_FILE).exists()
    return given if given != "auto" or is_quantised else str(arguments.dtype)


def _keeps_everything(config: Mapping[str, Any]) -> bool:
    """Whether every layer keeps keys and values of every token: otherwise pools differ, or what a token takes."""
    text = text_part(config)
    try:
        return set(kept_by_layer(text)) == {"all"} and first_int(text, "kv_lora_rank") is None
    except KeyError:
        return False


def _copies(tensor_parallel_size: int, config: Mapping[str, Any]) -> float:
    """How often each is there: once, unless a layer is split over more devices than it has heads."""
    _, kv_heads, _ = attention_heads(text_part(config))
    return max(1.0, tensor_parallel_size / kv_heads)
