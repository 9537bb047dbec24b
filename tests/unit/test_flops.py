"""Parameter counts against sums done by hand from the published dimensions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.core.backends.protocol import TokenPasses
from llenergymeasure.core.metrics.counting import TokenCounts
from llenergymeasure.core.metrics.flops import estimate_flops
from llenergymeasure.core.model.context import context_length
from llenergymeasure.core.model.parameters import (
    ParameterCount,
    count_from_config,
    count_from_name,
    count_weights,
)

GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
LLAMA2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
LLAMA3_8B = {**LLAMA2_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
MIXTRAL = {
    **LLAMA2_7B,
    "model_type": "mixtral",
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def test_gpt2_has_twelve_squares_per_layer_and_its_tied_head() -> None:
    # 12 layers of (3 + 1 + 4 + 4) d², and the head: the embedding again, multiplied this time
    by_hand = 12 * 12 * 768 * 768 + 50257 * 768
    assert by_hand == 123_532_032
    count = count_weights(GPT2)
    assert count is not None
    assert count.active == by_hand
    assert count.stored == by_hand + 1024 * 768  # tied: the vocabulary is stored once, positions beside it


def test_llama_counts_the_gate_of_its_feed_forward_layer() -> None:
    by_hand = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32000 * 4096
    assert by_hand == 6_607_077_376
    count = count_weights(LLAMA2_7B)
    assert count is not None
    assert count.active == by_hand
    assert count.stored == by_hand + 32000 * 4096  # untied: 6.74 billion, the "7B" of its name


def test_grouped_queries_need_fewer_key_and_value_weights() -> None:
    by_hand = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096
    assert by_hand == 7_504_658_432
    assert count_from_config(LLAMA3_8B).params == by_hand


def test_of_a_mixture_only_the_chosen_experts_count() -> None:
    always = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096  # attention and router
    expert = 3 * 4096 * 14336
    count = count_weights(MIXTRAL)
    assert count is not None
    assert count.active == 32 * (always + 2 * expert) + 32000 * 4096 == 12_748_587_008
    assert count.stored == 32 * (always + 8 * expert) + 2 * 32000 * 4096  # 46.7 billion


def test_tying_the_head_changes_what_is_stored_but_not_what_is_multiplied() -> None:
    tied, untied = count_weights({**LLAMA2_7B, "tie_word_embeddings": True}), count_weights(LLAMA2_7B)
    assert tied is not None
    assert untied is not None
    assert tied.active == untied.active
    assert untied.stored - tied.stored == 32000 * 4096


def test_an_explicit_head_width_is_used() -> None:
    # Gemma-7B: 16 heads of 256 on a width of 3072, so queries are wider than the model
    gemma = {**LLAMA2_7B, "model_type": "gemma", "hidden_size": 3072, "num_attention_heads": 16, "head_dim": 256}
    gemma |= {"num_key_value_heads": 16, "intermediate_size": 24576, "num_hidden_layers": 28, "vocab_size": 256000}
    assert count_from_config(gemma).params == 28 * (4 * 3072 * 4096 + 3 * 3072 * 24576) + 256000 * 3072


def test_the_language_part_of_a_multimodal_config_is_the_one_counted() -> None:
    assert count_from_config({"model_type": "llava", "text_config": LLAMA2_7B}).params == 6_607_077_376


def test_confidence_says_how_the_count_was_made() -> None:
    assert count_from_config(LLAMA2_7B).confidence == "medium"
    assert count_from_config({**LLAMA2_7B, "model_type": "brandnew"}).confidence == "low"
    assert "brandnew" in count_from_config({**LLAMA2_7B, "model_type": "brandnew"}).note
    assert count_from_name("meta-llama/Llama-2-7b-hf").confidence == "low"


def test_a_config_without_dimensions_gives_no_count_and_says_so() -> None:
    count = count_from_config({"model_type": "llama", "vocab_size": 100})
    assert count.params is None
    assert "dimensions" in count.note


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_000_000_000),
        ("facebook/opt-125m", 125_000_000),
        ("Qwen/Qwen2.5-0.5B", 500_000_000),
        ("Qwen/Qwen3-30B-A3B", 3_000_000_000),
        ("mistralai/Mixtral-8x7B-v0.1", None),
        ("gpt2", None),
        ("models/v2beta", None),
    ],
)
def test_a_name_tells_a_size_or_nothing(name: str, params: int | None) -> None:
    assert count_from_name(name).params == params


def test_operations_are_two_per_parameter_and_token() -> None:
    flops = estimate_flops(
        ParameterCount(7_504_658_432, "medium", "counted"), TokenCounts(512, 128, 1), "bf16", TokenPasses()
    )
    assert flops is not None
    assert flops.value == 2 * 7_504_658_432 * 640
    assert (flops.method, flops.confidence, flops.precision) == ("palm_formula", "medium", "bf16")
    assert flops.notes is not None
    assert "attention term" in flops.notes
    assert "7,504,658,432" in flops.notes


COUNTED = ParameterCount(1000, "high", "counted")


def test_without_a_cache_each_step_computes_the_text_so_far() -> None:
    tokens = TokenCounts(100, 20, 1, texts_so_far=20 * 100 + 190)
    kept, recomputed = (
        estimate_flops(COUNTED, tokens, "bf16", TokenPasses(recomputes_text=again)) for again in (False, True)
    )
    assert kept is not None
    assert recomputed is not None
    assert (kept.value, recomputed.value) == (2 * 1000 * 120, 2 * 1000 * 2190)
    assert recomputed.notes is not None
    assert "nothing is kept between steps" in recomputed.notes


def test_beams_are_rows_of_their_own() -> None:
    flops = estimate_flops(COUNTED, TokenCounts(100, 20, 1), "bf16", TokenPasses(rows_per_prompt=4))
    assert flops is not None
    assert flops.value == 4 * 2 * 1000 * 120
    assert flops.confidence == "high"


def test_drafts_that_are_rejected_lower_the_confidence_and_are_named() -> None:
    flops = estimate_flops(COUNTED, TokenCounts(100, 20, 1), "bf16", TokenPasses(drafted_by="tiny"))
    assert flops is not None
    assert flops.confidence == "low"
    assert flops.notes is not None
    assert "drafted by tiny" in flops.notes


def test_without_a_count_there_are_no_operations_rather_than_zero() -> None:
    assert estimate_flops(ParameterCount(None, "low", ""), TokenCounts(50, 50, 1), "bf16", TokenPasses()) is None


DIMENSION = st.integers(1, 64)


@given(heads=DIMENSION, head_dim=DIMENSION, inner=DIMENSION, layers=DIMENSION, vocabulary=DIMENSION)
def test_twice_the_layers_are_twice_the_weights_beside_the_head(
    heads: int, head_dim: int, inner: int, layers: int, vocabulary: int
) -> None:
    config: dict[str, Any] = {
        "model_type": "llama",
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": inner,
        "hidden_size": heads * head_dim,
        "vocab_size": vocabulary,
    }
    head = vocabulary * heads * head_dim
    once = count_from_config({**config, "num_hidden_layers": layers}).params
    twice = count_from_config({**config, "num_hidden_layers": 2 * layers}).params
    assert once is not None
    assert twice is not None
    assert twice - head == 2 * (once - head)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 32768}, 32768),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        (
            {
                "max_position_embeddings": 163840,
                "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            },
            163840,
        ),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 8192),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        (
            {
                "model_type": "gemma3_text",
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            131072,
        ),
        ({"hidden_size": 64}, None),
    ],
)
def test_scaled_positions_stretch_the_context(config: dict[str, Any], length: int | None) -> None:
    assert context_length(config) == length
