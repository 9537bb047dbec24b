"""How long a sequence a model takes, by its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llenergymeasure.core.model.parameters import Config, first_int, text_part

_LENGTH_IS_SCALED: Final = "gemma3"
"""Families that give the scaled length although they scale linearly."""


def context_length(config: Config) -> int | None:
    """Longest sequence a model takes, in tokens; `None`: it sets no bound."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
    parts = (text_part(config), config)
    found = ((first_int(part, name), part) for part in parts for name in names)
    return next((_stretched(length, part) for length, part in found if length is not None and length > 0), None)


def _stretched(length: int, config: Config) -> int:
    """`length`, or what the scaling of its rotary positions makes of it, where the config gives the length before."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, Mapping) or str(config.get("model_type")).startswith(_LENGTH_IS_SCALED):
        return length
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in ("yarn", "linear", "dynamic") or not isinstance(factor, int | float):
        return length
    before = first_int(scaling, "original_max_position_embeddings") or length
    return max(length, int(before * factor))
