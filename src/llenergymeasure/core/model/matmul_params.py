"""Counting, on a loaded model, the parameters that take part in matrix products for each token.

The walk goes by what a module is, not by the shape of its tensors: quantised weights are packed, so a linear layer
counts by its logical `in_features × out_features`; an output head counts although it may share the embedding's tensor;
of a mixture of experts the share counts that one token is sent to. Nothing here imports PyTorch: modules are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from llenergymeasure.core.metrics.flops import ParameterCount, count_from_config
from llenergymeasure.core.model.parameters import experts

_EXPERT_IN_LIST: Final = re.compile(r"(?:^|\.)experts\.\d+(?:\.|$)")
_ELEMENTWISE: Final = frozenset({"A_log"})
"""Tensors of two dimensions that multiply element by element: the decay rates of state-space layers."""

UNCLASSIFIED_LIMIT: Final = 0.01
"""Share of parameters that may stay unclassified before a count is no longer called certain."""


def count_loaded(model: Any) -> ParameterCount:
    """Count on a loaded `transformers` model (adapter layers inside it included).

    Args:
        model: A causal language model.

    Returns:
        The count, with `high` confidence; from the config instead (`medium`) where a mixture of experts is packed in a
        way that hides its layers.
    """
    config = model.config.to_dict()
    routed = experts(config)
    share = Fraction(routed[1], routed[0]) if routed else None
    active = Fraction(0)
    unclassified = total = 0
    for name, module in model.named_modules():
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


def _module_weights(module: Any, expert_count: int | None) -> tuple[int, int, bool]:
    """A module's own matrix weights, other parameters of two and more dimensions, and whether they are all experts'.

    A negative second figure says that the weights are packed beyond recognition.
    """
    if hasattr(module, "base_layer") or _is_embedding(module):
        return 0, 0, False  # an adapter's wrapper repeats the features of the layer it wraps, which is counted itself
    features = _features(module)
    if features is not None:
        return features, 0, False
    size = other = 0
    stacked = False
    for name, parameter in _own_matrices(module):
        if not parameter.is_floating_point():
            return 0, -1, False
        if expert_count and parameter.ndim == 3 and parameter.shape[0] == expert_count:
            size, stacked = size + parameter.numel(), True
        elif _is_convolution(module) or (name == "weight" and parameter.ndim == 2):
            size += parameter.numel()
        elif not name.endswith("bias") and name not in _ELEMENTWISE:
            other += parameter.numel()
    return size, other, stacked


def _own_matrices(module: Any) -> Iterator[tuple[str, Any]]:
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.ndim >= 2:
            yield name, parameter


def _features(module: Any) -> int | None:
    """Logical size of a linear layer, plain or quantised (`in_features`), or GPT-2's transposed one (`nx`, `nf`)."""
    for inner, outer in (("in_features", "out_features"), ("nx", "nf")):
        left, right = getattr(module, inner, None), getattr(module, outer, None)
        if isinstance(left, int) and isinstance(right, int) and not any(True for _ in module.children()):
            return left * right
    return None


def _is_embedding(module: Any) -> bool:
    return hasattr(module, "embedding_dim") or type(module).__name__.endswith("Embedding")


def _is_convolution(module: Any) -> bool:
    return hasattr(module, "kernel_size") and hasattr(module, "in_channels")
