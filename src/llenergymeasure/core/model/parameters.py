"""How many parameters a transformer has: counted on the loaded model, worked out from `config.json`, or by its name.

*Active* weights take part in a matrix product for each token (the N of 2 × N × tokens), *stored* ones have to be in
memory. They differ by embedding look-ups (stored, never multiplied), tied output heads (multiplied, stored once) and
experts of a mixture that a token is not sent to. Norms and biases, below 0.1 % of any model here, are in neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Final

from llenergymeasure.domain.base import Confidence

Config = Mapping[str, Any]
"""Content of a `config.json`."""

UNCLASSIFIED_LIMIT: Final = 0.01
"""Share of parameters that may stay unclassified before a count is no longer called certain."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """The N of 2 × N × tokens, and how far to trust it.

    Args:
        params: Parameters multiplied for each token; `None` where they could not be counted.
        confidence: `high`: on the loaded model; `medium`: from its config; `low`: from its name.
        note: How it was counted, or why it was not.
    """

    params: int | None
    confidence: Confidence
    note: str


@dataclass(frozen=True, slots=True)
class WeightCount:
    """Matrix weights of a model, or of its layers.

    Args:
        assumed: Whether the family is unknown and was taken to be built like Llama.
    """

    active: int
    stored: int
    assumed: bool = False


def count_loaded(model: Any) -> ParameterCount:
    """Count on a loaded `transformers` model, adapter layers inside it included; from its config where that is hidden.

    The walk goes by what a module is, not by the shape of its tensors: quantised weights are packed, so a linear layer
    counts by its logical `in_features × out_features`. PyTorch is not imported: modules are asked.
    """
    config = model.config.to_dict()
    routed = experts(config)
    share = Fraction(routed[1], routed[0]) if routed else None
    active = Fraction(0)
    unclassified = total = 0
    for name, module in _text_modules(model):
        size, other, is_stack = _module_weights(module, routed[0] if routed else None)
        if other < 0:
            return count_from_config(config)
        expert = is_stack or _EXPERT_IN_LIST.search(name) is not None
        if expert and size and share is None:
            return ParameterCount(None, "low", "not counted: the config does not tell how many experts a token uses")
        active += size * share if expert and share is not None else size
        unclassified += other
        total += size + other
    sure = unclassified <= UNCLASSIFIED_LIMIT * total
    note = "counted on the loaded model: matrices multiplied for each token, output head included, embeddings left out"
    if routed:
        note += f"; {routed[1]} of {routed[0]} experts"
    if not sure:
        note += f"; {unclassified} parameters of unknown use left out"
    return ParameterCount(int(active), "high" if sure else "medium", note)


def _text_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules that a text goes through, by name: no towers for images or sound, and no layer that was replaced."""
    config, text = model.config.to_dict(), None
    if text_part(config) is not config:
        parts = (model.get_decoder(), model.get_output_embeddings())
        text = {id(module) for part in parts if part is not None for module in part.modules()}
    for name, module in model.named_modules():
        if _REPLACED not in name.split(".") and (text is None or id(module) in text):
            yield name, module


def count_from_config(config: Config) -> ParameterCount:
    """Count from the config, where the engine does not let its weights be counted."""
    count = count_weights(config)
    if count is None:
        return ParameterCount(None, "low", "not counted: the config lacks the model's dimensions")
    routed = experts(config)
    mixture = f"; {routed[1]} of {routed[0]} experts" if routed else ""
    if not count.assumed:
        return ParameterCount(count.active, "medium", f"from the dimensions in the config{mixture}")
    family = config.get("model_type") or "unknown"
    return ParameterCount(count.active, "low", f"from the config, taking {family!r} to be built like Llama{mixture}")


def count_from_name(name: str) -> ParameterCount:
    """Count from a size in the model's name: `Llama-3.1-8B`, `opt-125m`; the active ones of `Qwen3-30B-A3B`.

    A product such as `8x7B` tells neither the total nor the active number, and counts as nothing.
    """
    leaf = _leaf(name)
    if _PRODUCT.search(leaf):
        return ParameterCount(None, "low", f"not counted: {leaf!r} does not tell how many parameters are active")
    match = min(_SIZE.finditer(leaf), key=lambda match: not match["active"], default=None)
    if match is None:
        return ParameterCount(None, "low", f"not counted: {leaf!r} holds no size")
    return ParameterCount(_size(match), "low", f"from the model's name: {match[0].strip('-_.')}")


def total_from_name(name: str) -> int | None:
    """All parameters by a size in the model's name, whether active or not: 30 billion for `Qwen3-30B-A3B`."""
    leaf = _leaf(name)
    sizes = [_size(match) for match in _SIZE.finditer(leaf) if not match["active"]]
    return sizes[0] if sizes and not _PRODUCT.search(leaf) else None


def bits_from_name(name: str) -> int | None:
    """Bits of a weight by what a name says of its quantisation: `7B-AWQ`, `8b-bnb-4bit`, `70B-FP8`; `None`: nothing."""
    match = min(_QUANTISED.finditer(_leaf(name)), key=lambda match: match["method"] is not None, default=None)
    if match is None:
        return None
    return int(match["bits"] or match["first"] or _USUAL_BITS[match["method"].lower()])


def count_weights(config: Config) -> WeightCount | None:
    """Work out all matrix weights; `None` where the config does not hold the numbers that are needed."""
    text = text_part(config)
    family = str(text.get("model_type") or config.get("model_type") or "")
    try:
        layers = _FAMILIES.get(family, _gated_layers)(text)
        embedding, positions = _ends(family, text)
    except KeyError:
        return None
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", family in _TIED_BY_DEFAULT)))
    return WeightCount(
        active=layers.active + embedding,  # the output head, as large as the embedding
        stored=layers.stored + positions + (embedding if tied else 2 * embedding),
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
    total = chosen = None
    for part in (text, nested) if isinstance(nested, Mapping) else (text,):
        total = total or first_int(part, "num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
        chosen = chosen or first_int(
            part, "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k", "moe_k"
        )
    return (total, chosen) if total and chosen else None


def first_int(config: Config, *names: str) -> int | None:
    """The first of `names` that holds a whole number."""
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def model_width(config: Config) -> int:
    """Width of the residual stream; `KeyError` where the config does not tell."""
    return _get(config, "hidden_size", "n_embd", "d_model", "n_embed")


def layer_count(config: Config) -> int:
    """Number of decoder layers; `KeyError` where the config does not tell."""
    return _get(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def attention_heads(config: Config) -> tuple[int, int, int]:
    """Query heads, key-value heads, and the width of a head; `KeyError` where the config does not tell."""
    heads = _get(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    kv_heads = first_int(config, "num_key_value_heads", "num_kv_heads") or heads
    one_for_all = config.get("multi_query", config.get("model_type") in _MULTI_QUERY_BY_DEFAULT)
    if one_for_all and not config.get("new_decoder_architecture"):
        kv_heads = 1
    return heads, kv_heads, first_int(config, "head_dim", "attention_head_dim") or model_width(config) // heads


def _get(config: Config, *names: str) -> int:
    value = first_int(config, *names)
    if value is None:
        raise KeyError(names[0])
    return value


def _inner(config: Config, name: str) -> int:
    """Width of the feed-forward layer under the family's own name; four times the model's where it is left out."""
    return int(config.get(name) or 4 * model_width(config))


def _ends(family: str, config: Config) -> tuple[int, int]:
    """Weights of the token embedding, and of learned position embeddings."""
    width = model_width(config)
    embedding = _get(config, "vocab_size") * int(config.get("word_embed_proj_dim") or width)
    if family not in _LEARNED_POSITIONS:
        return embedding, 0
    length = _get(config, "n_positions", "max_position_embeddings")
    return embedding, (length + (2 if family == "opt" else 0)) * width


def _attention(config: Config) -> int:
    """Query, key, value and output matrices of one layer, with fewer key-value heads where the config says so."""
    heads, kv_heads, head_dim = attention_heads(config)
    return 2 * model_width(config) * (heads + kv_heads) * head_dim


def _gated_layers(config: Config) -> WeightCount:
    """Feed-forward layer of three matrices (SwiGLU, GeGLU: gate, up and down), as Llama has it."""
    if experts(config) is not None:
        return _mixture_layers(config)
    feed_forward = 3 * model_width(config) * _get(config, "intermediate_size")
    total = layer_count(config) * (_attention(config) + feed_forward)
    return WeightCount(total, total)


def _plain_layers(config: Config, inner_name: str = "intermediate_size") -> WeightCount:
    """Feed-forward layer of two matrices."""
    total = layer_count(config) * (_attention(config) + 2 * model_width(config) * _inner(config, inner_name))
    return WeightCount(total, total)


def _opt_layers(config: Config) -> WeightCount:
    """Two matrices, and one on each side of the layers where the embedding is narrower than they are."""
    width, narrow = model_width(config), int(config.get("word_embed_proj_dim") or model_width(config))
    between = 2 * width * narrow if narrow != width else 0
    total = _plain_layers(config, "ffn_dim").active + between
    return WeightCount(total, total)


def _square_layers(config: Config) -> WeightCount:
    """Every head has keys and values of its own, so their number does not matter."""
    total = layer_count(config) * (4 + 2 * int(config.get("expansion_ratio", 4))) * model_width(config) ** 2
    return WeightCount(total, total)


def _mixture_layers(config: Config) -> WeightCount:
    """Mixture of experts with gated experts, a router, and (Qwen2-MoE) one shared expert behind a gate."""
    routed = experts(config)
    if routed is None:
        raise KeyError("num_experts")
    total, chosen = routed
    width, depth = model_width(config), layer_count(config)
    expert = 3 * width * int(config.get("moe_intermediate_size") or _get(config, "intermediate_size"))
    shared_inner = int(config.get("shared_expert_intermediate_size") or 0)
    shared = 3 * width * shared_inner + (width if shared_inner else 0)
    always = _attention(config) + total * width + shared
    dense_layers, step = config.get("mlp_only_layers") or (), int(config.get("decoder_sparse_step") or 1)
    sparse = sum(layer not in dense_layers and (layer + 1) % step == 0 for layer in range(depth))  # Qwen's leave some
    dense = (depth - sparse) * (_attention(config) + 3 * width * _inner(config, "intermediate_size"))
    return WeightCount(dense + sparse * (always + chosen * expert), dense + sparse * (always + total * expert))


def _deepseek_layers(config: Config) -> WeightCount:
    """Latent attention (DeepSeek-V2, section 2.1) and experts beside shared ones, after some dense layers."""
    total, chosen = _get(config, "n_routed_experts"), _get(config, "num_experts_per_tok")
    width, depth = model_width(config), layer_count(config)
    dense = min(int(config.get("first_k_dense_replace") or 0), depth)
    attention = _latent_attention(config)
    expert = 3 * width * _get(config, "moe_intermediate_size")
    always = attention + total * width + int(config.get("n_shared_experts") or 0) * expert
    dense_weights = dense * (attention + 3 * width * _get(config, "intermediate_size"))
    return WeightCount(
        dense_weights + (depth - dense) * (always + chosen * expert),
        dense_weights + (depth - dense) * (always + total * expert),
    )


def _latent_attention(config: Config) -> int:
    width, heads = model_width(config), _get(config, "num_attention_heads")
    rank, rope = _get(config, "kv_lora_rank"), _get(config, "qk_rope_head_dim")
    key, value = _get(config, "qk_nope_head_dim"), _get(config, "v_head_dim")
    query_rank = config.get("q_lora_rank")
    query_width = heads * (key + rope)
    query = width * query_width if query_rank is None else int(query_rank) * (width + query_width)
    return query + width * (rank + rope) + rank * heads * (key + value) + heads * value * width


_FAMILIES: Final[Mapping[str, Callable[[Config], WeightCount]]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"),
            *("olmo", "olmo2", "olmo3", "cohere", "cohere2", "stablelm", "granite", "glm", "glm4", "exaone4", "helium"),
        ),
        _gated_layers,
    ),
    **dict.fromkeys(("gpt_neo", "gpt_neox", "phi", "starcoder2", "nemotron", "arcee"), _plain_layers),
    **dict.fromkeys(("gpt2", "gptj", "codegen", "gpt_bigcode"), partial(_plain_layers, inner_name="n_inner")),
    **dict.fromkeys(("mixtral", "phimoe", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss"), _mixture_layers),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _deepseek_layers),
    **dict.fromkeys(("bloom", "mpt"), _square_layers),
    "falcon": partial(_plain_layers, inner_name="ffn_hidden_size"),
    "opt": _opt_layers,
}

_MULTI_QUERY_BY_DEFAULT: Final = frozenset({"falcon", "gpt_bigcode"})
_LEARNED_POSITIONS: Final = frozenset({"gpt2", "gpt_neo", "gpt_bigcode", "opt"})
_TIED_BY_DEFAULT: Final = frozenset(
    {
        *("gpt2", "gpt_neo", "gpt_bigcode", "opt", "bloom", "falcon", "mpt", "starcoder2"),
        *("gemma", "gemma2", "gemma3_text", "cohere", "cohere2"),
    }
)
"""Families whose output head is the embedding unless the config says otherwise."""

_UNITS: Final = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_SIZE: Final = re.compile(
    r"(?:^|[-_.])(?P<active>a?)(?P<number>\d+(?:\.\d+)?)(?P<unit>[kmbt])(?=$|[-_.])", re.IGNORECASE
)
_USUAL_BITS: Final = {"awq": 4, "gptq": 4}
_QUANTISED: Final = re.compile(
    r"(?:^|[-_.])(?:(?:nv|mx)?(?:fp|int|nf|w|q)(?P<bits>[2348])(?:a\d+|_k\w*|_\d)?"
    r"|(?P<first>[2348])-?bits?|(?P<method>awq|gptq))(?=$|[-_.])",
    re.IGNORECASE,
)
_PRODUCT: Final = re.compile(r"\d+x\d+(?:\.\d+)?[kmbt]", re.IGNORECASE)


def _leaf(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _size(match: re.Match[str]) -> int:
    return round(float(match["number"]) * _UNITS[match["unit"].lower()])


_REPLACED: Final = "original_module"
"""Where peft keeps a layer of which an adapter brings its own copy (`modules_to_save`)."""

_EXPERT_IN_LIST: Final = re.compile(r"(?:^|\.)experts\.\d+(?:\.|$)")
_ELEMENTWISE: Final = frozenset({"A_log"})
"""Tensors of two dimensions that multiply element by element: the decay rates of state-space layers."""


def _module_weights(module: Any, expert_count: int | None) -> tuple[int, int, bool]:
    """A module's own matrix weights, other parameters of two and more dimensions, and whether they are all experts'.

    A negative second figure says that the weights are packed beyond recognition.
    """
    is_embedding = hasattr(module, "embedding_dim") or type(module).__name__.endswith("Embedding")
    if is_embedding or hasattr(module, "base_layer"):
        return 0, 0, False  # an adapter's wrapper repeats the features of the layer it wraps, which is counted itself
    features = _features(module)
    if features is not None:
        return features, 0, False
    is_convolution = hasattr(module, "kernel_size") and hasattr(module, "in_channels")
    size = other = 0
    stacked = False
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.ndim < 2:
            continue
        if not parameter.is_floating_point():
            return 0, -1, False
        if expert_count and parameter.ndim == 3 and parameter.shape[0] == expert_count:
            size, stacked = size + parameter.numel(), True
        elif is_convolution or (name == "weight" and parameter.ndim == 2):
            size += parameter.numel()
        elif not name.endswith("bias") and name not in _ELEMENTWISE:
            other += parameter.numel()
    return size, other, stacked


def _features(module: Any) -> int | None:
    """Logical size of a linear layer, plain or quantised (`in_features`), or GPT-2's transposed one (`nx`, `nf`)."""
    for inner, outer in (("in_features", "out_features"), ("nx", "nf")):
        left, right = getattr(module, inner, None), getattr(module, outer, None)
        if isinstance(left, int) and isinstance(right, int) and not any(True for _ in module.children()):
            return left * right
    return None
