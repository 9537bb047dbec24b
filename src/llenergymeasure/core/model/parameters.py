"""How many weights a transformer has, worked out from the numbers in its `config.json`.

Two totals per model: *active*, the weights that take part in a matrix product for each token (the N of 2 × N × tokens),
and *stored*, all matrices that have to be in memory. They differ by embedding look-ups (stored, never multiplied), tied
output heads (multiplied, stored once) and the experts of a mixture that a token is not sent to. Norms and biases are
left out of both: they are below 0.1 % of any model here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WeightCount:
    """Matrix weights of a model.

    Args:
        active: Weights multiplied for each token.
        stored: Weights in memory.
        assumed: Whether the family is unknown and was taken to be built like Llama.
    """

    active: int
    stored: int
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class _Layers:
    """All decoder layers together, and matrices between embedding and layers."""

    active: int
    stored: int


def count_weights(config: Config) -> WeightCount | None:
    """Count from the content of a `config.json`; `None` where it does not hold the numbers that are needed."""
    text = text_part(config)
    family = str(text.get("model_type") or config.get("model_type") or "")
    layers_of = _FAMILIES.get(family, _llama_layers)
    try:
        layers = layers_of(text)
        embedding, head, positions = _ends(family, text)
    except KeyError:
        return None
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", family in _TIED_BY_DEFAULT)))
    return WeightCount(
        active=layers.active + head,
        stored=layers.stored + embedding + positions + (0 if tied else head),
        assumed=family not in _FAMILIES,
    )


def text_part(config: Config) -> Config:
    """The part of a multimodal model's config that describes the language model; otherwise the config itself."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def experts(config: Config) -> tuple[int, int] | None:
    """Number of routed experts per layer and how many of them each token is sent to; `None` for a dense model."""
    text = text_part(config)
    nested = text.get("ffn_config")
    sources = (text, nested) if isinstance(nested, Mapping) else (text,)
    total = _first_of(sources, ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"))
    chosen = _first_of(
        sources, ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k", "moe_k")
    )
    return (total, chosen) if total and chosen else None


def _first_of(sources: tuple[Config, ...], names: tuple[str, ...]) -> int | None:
    return next((int(source[name]) for source in sources for name in names if source.get(name) is not None), None)


def _get(config: Config, *names: str) -> int:
    """The first of `names` that is set.

    Raises:
        KeyError: None of them is.
    """
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    raise KeyError(names[0])


def _width(config: Config) -> int:
    return _get(config, "hidden_size", "n_embd", "d_model", "n_embed")


def _depth(config: Config) -> int:
    return _get(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _inner(config: Config, name: str) -> int:
    """Width of the feed-forward layer under the family's own name; four times the model's where it is left out."""
    return int(config.get(name) or 4 * _width(config))


def _ends(family: str, config: Config) -> tuple[int, int, int]:
    """Weights of token embedding, output head and learned position embedding."""
    vocabulary = _get(config, "vocab_size")
    width = int(config.get("word_embed_proj_dim") or _width(config))
    positions = 0
    if family in _LEARNED_POSITIONS:
        length = _get(config, "n_positions", "max_position_embeddings")
        positions = (length + (2 if family == "opt" else 0)) * _width(config)
    return vocabulary * width, vocabulary * width, positions


def _grouped_attention(config: Config) -> int:
    """Query, key, value and output matrices of one layer, with fewer key-value heads where the config says so."""
    width, heads = _width(config), _get(config, "num_attention_heads", "n_head", "num_heads")
    head_dim = int(config.get("head_dim") or width // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return 2 * width * heads * head_dim + 2 * width * kv_heads * head_dim


def _llama_layers(config: Config) -> _Layers:
    """Gated feed-forward layer (SwiGLU, GeGLU): gate, up and down."""
    if experts(config) is not None:
        return _mixture_layers(config)
    total = _depth(config) * (_grouped_attention(config) + 3 * _width(config) * _get(config, "intermediate_size"))
    return _Layers(total, total)


def _plain_layers(config: Config, inner_name: str = "intermediate_size") -> _Layers:
    """Feed-forward layer of two matrices."""
    total = _depth(config) * (_grouped_attention(config) + 2 * _width(config) * _inner(config, inner_name))
    return _Layers(total, total)


def _gpt_layers(config: Config) -> _Layers:
    return _plain_layers(config, "n_inner")


def _bloom_layers(config: Config) -> _Layers:
    width = _width(config)
    total = _depth(config) * (4 * width * width + 8 * width * width)
    return _Layers(total, total)


def _opt_layers(config: Config) -> _Layers:
    width, narrow = _width(config), int(config.get("word_embed_proj_dim") or _width(config))
    between = 2 * width * narrow if narrow != width else 0
    total = _plain_layers(config, "ffn_dim").active + between
    return _Layers(total, total)


def _multi_query_layers(config: Config) -> _Layers:
    """GPT-BigCode: one key and value head for all where `multi_query` is on."""
    width, heads = _width(config), _get(config, "n_head", "num_attention_heads")
    kv_width = width // heads if config.get("multi_query", True) else width
    total = _depth(config) * (2 * width * width + 2 * width * kv_width + 2 * width * _inner(config, "n_inner"))
    return _Layers(total, total)


def _falcon_layers(config: Config) -> _Layers:
    width, heads = _width(config), _get(config, "num_attention_heads", "n_head")
    if config.get("new_decoder_architecture"):
        kv_heads = int(config.get("num_kv_heads") or heads)
    else:
        kv_heads = 1 if config.get("multi_query", True) else heads
    attention = 2 * width * width + 2 * width * kv_heads * (width // heads)
    total = _depth(config) * (attention + 2 * width * _inner(config, "ffn_hidden_size"))
    return _Layers(total, total)


def _mpt_layers(config: Config) -> _Layers:
    width = _width(config)
    total = _depth(config) * (4 * width * width + 2 * width * int(config.get("expansion_ratio", 4)) * width)
    return _Layers(total, total)


def _mixture_layers(config: Config) -> _Layers:
    """Mixture of experts with gated experts, a router, and (Qwen2-MoE) one shared expert behind a gate."""
    routed = experts(config)
    if routed is None:
        raise KeyError("num_experts")
    total, chosen = routed
    width, depth = _width(config), _depth(config)
    expert = 3 * width * int(config.get("moe_intermediate_size") or _get(config, "intermediate_size"))
    shared_inner = int(config.get("shared_expert_intermediate_size") or 0)
    shared = 3 * width * shared_inner + (width if shared_inner else 0)
    always = _grouped_attention(config) + total * width + shared
    sparse = sum(_is_sparse(config, layer) for layer in range(depth))
    dense = (depth - sparse) * (_grouped_attention(config) + 3 * width * _inner(config, "intermediate_size"))
    return _Layers(dense + sparse * (always + chosen * expert), dense + sparse * (always + total * expert))


def _is_sparse(config: Config, layer: int) -> bool:
    """Whether a layer holds experts: Qwen's configs may leave some layers dense."""
    if layer in (config.get("mlp_only_layers") or ()):
        return False
    return (layer + 1) % int(config.get("decoder_sparse_step") or 1) == 0


def _deepseek_layers(config: Config) -> _Layers:
    """Latent attention (DeepSeek-V2, section 2.1) and experts beside shared ones, after some dense layers."""
    total, chosen = _get(config, "n_routed_experts"), _get(config, "num_experts_per_tok")
    width, depth = _width(config), _depth(config)
    dense = min(int(config.get("first_k_dense_replace") or 0), depth)
    attention = _latent_attention(config)
    expert = 3 * width * _get(config, "moe_intermediate_size")
    always = attention + total * width + int(config.get("n_shared_experts") or 0) * expert
    dense_weights = dense * (attention + 3 * width * _get(config, "intermediate_size"))
    return _Layers(
        dense_weights + (depth - dense) * (always + chosen * expert),
        dense_weights + (depth - dense) * (always + total * expert),
    )


def _latent_attention(config: Config) -> int:
    width, heads = _width(config), _get(config, "num_attention_heads")
    rank, rope = _get(config, "kv_lora_rank"), _get(config, "qk_rope_head_dim")
    key, value = _get(config, "qk_nope_head_dim"), _get(config, "v_head_dim")
    query_rank = config.get("q_lora_rank")
    query_width = heads * (key + rope)
    query = width * query_width if query_rank is None else int(query_rank) * (width + query_width)
    return query + width * (rank + rope) + rank * heads * (key + value) + heads * value * width


_FAMILIES: Final[Mapping[str, Callable[[Config], _Layers]]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"),
            *("olmo", "olmo2", "olmo3", "cohere", "cohere2", "stablelm", "granite", "glm", "glm4", "exaone4", "helium"),
        ),
        _llama_layers,
    ),
    **dict.fromkeys(("gpt_neo", "gpt_neox", "phi", "starcoder2", "nemotron", "arcee"), _plain_layers),
    **dict.fromkeys(("gpt2", "gptj", "codegen"), _gpt_layers),
    **dict.fromkeys(("mixtral", "phimoe", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss"), _mixture_layers),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _deepseek_layers),
    "bloom": _bloom_layers,
    "opt": _opt_layers,
    "falcon": _falcon_layers,
    "gpt_bigcode": _multi_query_layers,
    "mpt": _mpt_layers,
}

_LEARNED_POSITIONS: Final = frozenset({"gpt2", "gpt_neo", "gpt_bigcode", "opt"})
_TIED_BY_DEFAULT: Final = frozenset(
    {
        *("gpt2", "gpt_neo", "gpt_bigcode", "opt", "bloom", "falcon", "mpt", "starcoder2"),
        *("gemma", "gemma2", "gemma3_text", "cohere", "cohere2"),
    }
)
"""Families whose output head is the embedding unless the config says otherwise."""
