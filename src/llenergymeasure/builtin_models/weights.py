"""The built-in models' weights: random, the same bytes on every machine, and tame enough to test engines with.

Each tensor comes from its own SHAKE-256 stream, named after it, so that neither torch's version nor the processor's
vector units play a part. A weight is a sum of four 6-bit numbers (nearly normal) times a power of two, hence exact in
bf16, fp16 and fp32 alike: a model loaded in another precision has the same weights.

The scales keep every layer's output near unit size and let attention choose: the next token hangs on the whole context
and greedy text does not run in circles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

RECIPE_VERSION: Final = 1
"""Goes up whenever the weights change; part of the name of a model's directory."""

# Binary exponents of the step between neighbouring weights; the standard deviation is 37 steps. With 256 inputs, -9
# keeps unit size, one more doubles it.
_EMBEDDING_EXPONENT: Final = -5
_LAYER_EXPONENT: Final = -9
_QUERY_EXPONENT: Final = -8
_HEAD_EXPONENT: Final = -7

_DRAWS: Final = 4
_DRAW_MASK: Final = 0b111111
_MEAN: Final = _DRAWS * _DRAW_MASK // 2


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    exponent: int | None  # None: all ones (a norm)


def build_weights(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Make all tensors of a Llama with this `config.json`, in bf16, under the names that transformers gives them."""
    import torch

    weights = {}
    for tensor in _tensors(config):
        if tensor.exponent is None:
            weights[tensor.name] = torch.ones(tensor.shape, dtype=torch.bfloat16)
        else:
            weights[tensor.name] = (_draw(tensor.name, tensor.shape) * 2.0**tensor.exponent).to(torch.bfloat16)
    # Padding and BOS have meaning as inputs only: with zero rows they are never the likeliest output.
    for token_id in (config["pad_token_id"], config["bos_token_id"]):
        weights["lm_head.weight"][token_id] = 0.0
    return weights


def _tensors(config: Mapping[str, Any]) -> Iterator[_Tensor]:
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield _Tensor("model.embed_tokens.weight", (vocabulary, hidden), _EMBEDDING_EXPONENT)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield _Tensor(f"{layer}.input_layernorm.weight", (hidden,), None)
        yield _Tensor(f"{layer}.self_attn.q_proj.weight", (queries, hidden), _QUERY_EXPONENT)
        yield _Tensor(f"{layer}.self_attn.k_proj.weight", (keys, hidden), _LAYER_EXPONENT)
        yield _Tensor(f"{layer}.self_attn.v_proj.weight", (keys, hidden), _LAYER_EXPONENT)
        yield _Tensor(f"{layer}.self_attn.o_proj.weight", (hidden, queries), _LAYER_EXPONENT)
        yield _Tensor(f"{layer}.post_attention_layernorm.weight", (hidden,), None)
        yield _Tensor(f"{layer}.mlp.gate_proj.weight", (inner, hidden), _LAYER_EXPONENT)
        yield _Tensor(f"{layer}.mlp.up_proj.weight", (inner, hidden), _LAYER_EXPONENT)
        yield _Tensor(f"{layer}.mlp.down_proj.weight", (hidden, inner), _LAYER_EXPONENT)
    yield _Tensor("model.norm.weight", (hidden,), None)
    yield _Tensor("lm_head.weight", (vocabulary, hidden), _HEAD_EXPONENT)


def _draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Whole numbers around 0, nearly normal with a standard deviation of 37, none beyond ±126, as float32."""
    import torch

    stream = hashlib.shake_256(name.encode()).digest(prod(shape) * _DRAWS)
    draws = torch.frombuffer(bytearray(stream), dtype=torch.uint8).view(*shape, _DRAWS) & _DRAW_MASK
    return draws.sum(-1, dtype=torch.int32).sub(_MEAN).to(torch.float32)
