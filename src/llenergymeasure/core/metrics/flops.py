"""Floating-point operations of inference, as reference metadata: 2 × N × tokens.

Each token, of the input as of the output, is multiplied once with each of the N weights that take part in matrix
products: one multiplication and one addition per weight (Chowdhery et al. 2022, "PaLM", appendix B; Kaplan et al. 2020,
section 2.1). N leaves out embedding look-ups, which multiply nothing, and the experts a token is not sent to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llenergymeasure.core.backends.protocol import LoadedModel
from llenergymeasure.core.model.parameters import count_weights, experts
from llenergymeasure.domain.base import Confidence
from llenergymeasure.domain.metrics import FlopsResult

METHOD: Final = "palm_formula"
ATTENTION_NOTE: Final = (
    "2 x N x (input + output tokens). The attention term, which grows with the sequence, is left out: it matters "
    "beyond about 2,048 tokens."
)


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """The N of the formula, and how far to trust it.

    Args:
        params: Parameters multiplied for each token; `None` where they could not be counted.
        confidence: `high`: on the loaded model; `medium`: from its config; `low`: from its name or file size.
        note: How it was counted, or why it was not.
    """

    params: int | None
    confidence: Confidence
    note: str


def estimate_flops(model: LoadedModel, tokens: int, precision: str) -> FlopsResult | None:
    """Operations that `tokens` cost on `model`.

    Args:
        model: What was loaded, with its count of active parameters.
        tokens: Input and output tokens of the window; warm-up is not in it.
        precision: Number format of the arithmetic.

    Returns:
        `None` where the parameters could not be counted.
    """
    if model.active_matmul_params is None:
        return None
    return FlopsResult(
        value=2.0 * model.active_matmul_params * tokens,
        method=METHOD,
        confidence=model.params_confidence,
        precision=precision,
        notes=f"N = {model.active_matmul_params:,} ({model.params_note}). {ATTENTION_NOTE}",
    )


def count_from_config(config: Mapping[str, Any]) -> ParameterCount:
    """Count from the content of a `config.json`, where the engine does not let its weights be counted."""
    count = count_weights(config)
    if count is None:
        return ParameterCount(None, "low", "not counted: the config lacks the model's dimensions")
    routed = experts(config)
    mixture = f"; {routed[1]} of {routed[0]} experts" if routed else ""
    if count.assumed:
        family = config.get("model_type") or "unknown"
        return ParameterCount(
            count.active, "low", f"from the config, taking {family!r} to be built like Llama{mixture}"
        )
    return ParameterCount(count.active, "medium", f"from the dimensions in the config{mixture}")


def count_from_name(name: str) -> ParameterCount:
    """Count from a size in the model's name: `Llama-3.1-8B`, `opt-125m`; the active ones of `Qwen3-30B-A3B`.

    A product such as `8x7B` tells neither the total nor the active number, and counts as nothing.
    """
    leaf = name.rstrip("/").rsplit("/", 1)[-1]
    if _PRODUCT.search(leaf):
        return ParameterCount(None, "low", f"not counted: {leaf!r} does not tell how many parameters are active")
    match = _ACTIVE_SIZE.search(leaf) or _SIZE.search(leaf)
    if match is None:
        return ParameterCount(None, "low", f"not counted: {leaf!r} holds no size")
    return ParameterCount(_size(match), "low", f"from the model's name: {match[0].strip('-_.')}")


def total_from_name(name: str) -> int | None:
    """All parameters by a size in the model's name, whether active or not: 30 billion for `Qwen3-30B-A3B`."""
    leaf = name.rstrip("/").rsplit("/", 1)[-1]
    match = None if _PRODUCT.search(leaf) else _SIZE.search(_ACTIVE_SIZE.sub("", leaf))
    return None if match is None else _size(match)


def _size(match: re.Match[str]) -> int:
    return round(float(match["number"]) * _UNITS[match["unit"].lower()])


def count_from_file_size(weight_bytes: int, bits_per_weight: float) -> ParameterCount:
    """Count from the size of the weight files, embeddings included.

    Args:
        weight_bytes: Size of all weight files in bytes.
        bits_per_weight: Width of the stored weights.
    """
    params = round(weight_bytes * 8 / bits_per_weight)
    return ParameterCount(params, "low", f"from {weight_bytes:,} bytes of weights at {bits_per_weight:g} bits each")


_UNITS: Final = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_SIZE: Final = re.compile(r"(?:^|[-_.])(?P<number>\d+(?:\.\d+)?)(?P<unit>[kmbt])(?=$|[-_.])", re.IGNORECASE)
_ACTIVE_SIZE: Final = re.compile(r"(?:^|[-_.])a(?P<number>\d+(?:\.\d+)?)(?P<unit>[kmbt])(?=$|[-_.])", re.IGNORECASE)
_PRODUCT: Final = re.compile(r"\d+x\d+(?:\.\d+)?[kmbt]", re.IGNORECASE)
