"""The size of a key-value cache by `config.json` alone: which layers keep keys and values, and of how many tokens.

Configs of older releases do not list their layers (`layer_types`); they give a period, a pattern, a list of places, or
nothing where the family's own default holds. The names and defaults are those of transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from llenergymeasure.core.model.parameters import attention_heads, first_int, layer_count, text_part

Config = Mapping[str, Any]
Kept = Literal["all", "window", "nothing"]
"""What a layer keeps of a text: every token, those of its window, or no keys and values (state-space, linear)."""

_LISTED: Final = ("layer_types", "layers_block_type", "block_types")
_KEEPS_NOTHING: Final = frozenset({"linear_attention", "linear", "mamba", "mamba2", "recurrent", "conv", "moe", "mlp"})
_WITHOUT_ATTENTION: Final = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})
_WINDOW_ON_REQUEST: Final = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"})
"""Families whose window holds only where `use_sliding_window` says so."""

_WINDOWS: Final[Mapping[str, tuple[int, int]]] = {
    "gemma2": (2, 4096),
    "gemma3_text": (6, 4096),
    "gemma3n_text": (5, 512),
    "cohere2": (4, 4096),
    "olmo3": (4, 4096),
    "exaone4": (4, 4096),
    "gpt_oss": (2, 128),
    "llama4_text": (4, 8192),
}
"""Every how many layers one keeps everything, and the window of the others, where the config leaves it out."""

_LINEAR_PERIODS: Final = {"qwen3_next": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4, "olmo_hybrid": 4}
"""Every how many layers one has attention, where the config leaves it out."""


def kv_cache_bytes(config: Config, rows: int, tokens: int, bytes_per_value: float) -> float | None:
    """Size in bytes of a key-value cache of `rows` sequences; `None` where the config lacks the dimensions.

    2 (keys and values) × key-value heads × head width × rows × bytes per value × tokens kept, summed over the layers.
    """
    text = text_part(config)
    if text.get("model_type") in _WITHOUT_ATTENTION:
        return 0.0
    try:
        return _values_per_token(text) * _cached_positions(text, tokens) * rows * bytes_per_value
    except KeyError:
        return None


def kept_by_layer(text: Config) -> list[Kept]:
    """What each layer keeps; `KeyError` where the config lacks the number of layers."""
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return ["all" if character == "*" else "nothing" for character in pattern]
    depth = layer_count(text)
    listed = next((value for name in _LISTED if isinstance(value := text.get(name), list | tuple) and value), None)
    if listed is not None:
        kinds = [str(listed[layer % len(listed)]) for layer in range(depth)]
        kept = [_kept_by_kind(kind, is_local="attention_window_size" in text) for kind in kinds]
    else:
        has_attention, sees_all = _attention_rule(text), _window_rule(text)
        kept = [
            "nothing" if not has_attention(layer) else "all" if sees_all(layer) else "window" for layer in range(depth)
        ]
    shared = first_int(text, "num_kv_shared_layers") or 0  # the last ones read the keys and values of others
    return [kind if layer < depth - shared else "nothing" for layer, kind in enumerate(kept)]


def _kept_by_kind(kind: str, *, is_local: bool) -> Kept:
    """`is_local`: what the config calls attention has a window."""
    if kind in _KEEPS_NOTHING:
        return "nothing"
    return "window" if "sliding" in kind or "chunked" in kind or (is_local and kind == "attention") else "all"


def _attention_rule(text: Config) -> Callable[[int], bool]:
    """Whether a layer has attention that keeps keys and values."""
    family = str(text.get("model_type"))
    if (period := first_int(text, "attn_layer_period")) is not None:
        offset = first_int(text, "attn_layer_offset") or 0
        return lambda layer: layer % period == offset
    for name in ("attn_layer_indices", "full_attn_idxs"):
        if isinstance(places := text.get(name), list):
            return lambda layer: layer in places
    if isinstance(flags := text.get("attn_type_list"), list):
        return lambda layer: bool(flags[layer % len(flags)])
    if family == "minimax":
        return lambda layer: (layer + 1) % 2 == 1
    interval = first_int(text, "full_attention_interval") or _LINEAR_PERIODS.get(family)
    return lambda layer: interval is None or (layer + 1) % interval == 0


def _window_rule(text: Config) -> Callable[[int], bool]:
    """Whether a layer sees, and keeps, the whole text."""
    family, depth = str(text.get("model_type")), layer_count(text)
    if _window(text) is None:
        return lambda layer: True
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
    if isinstance(pattern, str):
        return lambda layer: pattern[layer % len(pattern)] == "G" or layer == depth - 1
    if (first := first_int(text, "max_window_layers")) is not None:
        return lambda layer: layer < first
    period = pattern or first_int(text, "no_rope_layer_interval") or _WINDOWS.get(family, (None, 0))[0]
    return lambda layer: period is not None and (layer + 1) % int(period) == 0


def _window(text: Config) -> int | None:
    """Tokens of the sliding window (or chunk) that some layers are limited to; `None`: none is."""
    family = str(text.get("model_type"))
    if not text.get("use_sliding_window", family not in _WINDOW_ON_REQUEST):
        return None
    name = "attention_chunk_size" if "attention_chunk_size" in text else "sliding_window"
    if name not in text and (window := first_int(text, "attention_window_size")) is not None:
        return window
    return first_int(text, name) if name in text else _WINDOWS.get(family, (0, None))[1]


def _cached_positions(text: Config, tokens: int) -> int:
    """Positions that all layers together hold of one sequence of `tokens`; `KeyError` as above."""
    window = _window(text)
    held: Mapping[Kept, int] = {"all": tokens, "window": min(tokens, window or tokens), "nothing": 0}
    return sum(held[kept] for kept in kept_by_layer(text))


def _values_per_token(text: Config) -> int:
    """Numbers that one layer caches for one token; `KeyError` where the config lacks the dimensions."""
    heads, kv_heads, head_dim = attention_heads(text)
    if first_int(text, "kv_lora_rank") is not None:  # latent attention, cached after expansion by transformers
        key = (first_int(text, "qk_nope_head_dim") or 0) + (first_int(text, "qk_rope_head_dim") or 0)
        return heads * (key + (first_int(text, "v_head_dim") or key))
    return 2 * kv_heads * head_dim
