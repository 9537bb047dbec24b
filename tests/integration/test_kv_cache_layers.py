"""Which layers keep keys and values, by configs as older releases wrote them, against transformers' own cache."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llenergymeasure.core.model.kv_cache import kept_by_layer  # noqa: E402

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 12, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 64}

FAMILIES: dict[str, dict[str, Any]] = {
    **{
        family: {} for family in ("llama", "mixtral", "granite", "gemma2", "gemma3_text", "cohere2", "olmo3", "gpt_oss")
    },
    **{family: {} for family in ("llama4_text", "qwen3_next", "qwen3_5_text", "olmo_hybrid", "jamba", "minimax")},
    **{family: {"sliding_window": 8} for family in ("mistral", "ministral", "phi3", "starcoder2", "qwen3", "smollm3")},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5},
    "bamba": {"attn_layer_indices": [3, 9]},
    "lfm2": {"full_attn_idxs": [1, 4]},
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 6},
    "nemotron_h": {"hybrid_override_pattern": "M-M*-M*-M-ME"},
    "falcon_h1": {},
}

LISTS = ("layer_types", "layers_block_type")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_keeps_what_transformers_keeps(family: str) -> None:
    given = FAMILIES[family]
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **given})
    as_written = {name: value for name, value in config.to_dict().items() if name not in LISTS}
    found = kept_by_layer({**as_written, **given, "model_type": family})
    assert found == [kept(layer) for layer in transformers.DynamicCache(config=config).layers]


def kept(layer: object) -> str:
    kind = type(layer).__name__
    if kind in ("LinearAttentionLayer", "DummyLayer"):
        return "nothing"
    return "window" if "SlidingWindow" in kind else "all"
