"""Prompts of an exact length in tokens, made of random ids of the model's own vocabulary.

The ids are drawn directly: text that is encoded again would come out longer or shorter. Prompt `i` depends on the seed,
`i`, the length and the vocabulary, not on how many prompts are made: a smaller `n` gives the beginning of a larger one.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llenergymeasure.datasets.types import DatasetIdentity, Prompt, PromptTokenizer
from llenergymeasure.exceptions import DatasetError

if TYPE_CHECKING:
    from llenergymeasure.config.models import SyntheticDatasetConfig

RECIPE_VERSION: Final = 1
"""Goes up whenever the same parameters would give other prompts than before; part of the identity."""

_PROBE: Final = "a"


def make_prompts(config: SyntheticDatasetConfig, n: int, tokenizer: PromptTokenizer) -> tuple[Prompt, ...]:
    """Make the first `n` prompts, each of exactly `config.input_len` tokens.

    The special ids that the tokenizer itself puts around a text (BOS, mostly) are there and count; no other special
    id occurs.

    Raises:
        DatasetError: `input_len` leaves no room for those, or the vocabulary has no ordinary id.
    """
    opening, closing = _frame(tokenizer)
    body_len = config.input_len - len(opening) - len(closing)
    if body_len < 0:
        raise DatasetError(
            f"dataset synthetic: input_len = {config.input_len} is too short: this model's tokenizer adds "
            f"{len(opening) + len(closing)} special tokens to every prompt. Set input_len higher."
        )
    ordinary_ids = [token_id for token_id in range(tokenizer.vocab_size) if token_id not in tokenizer.special_ids]
    if not ordinary_ids:
        raise DatasetError("dataset synthetic: the model's vocabulary has no ordinary token to build prompts from")
    return tuple(
        _prompt(index, (*opening, *_draw(config.seed, index, ordinary_ids, body_len), *closing), tokenizer)
        for index in range(n)
    )


def synthetic_identity(config: SyntheticDatasetConfig, n: int) -> DatasetIdentity:
    """Identity of the first `n` prompts; the pool's size is not in it, for it does not change them."""
    parameters = {
        "input_len": config.input_len,
        "output_len": config.output_len,
        "recipe": RECIPE_VERSION,
        "seed": config.seed,
    }
    canonical = json.dumps(parameters, sort_keys=True, separators=(",", ":"))
    return DatasetIdentity(
        name=f"synthetic-{config.input_len}-{config.output_len}-seed{config.seed}",
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        prompt_count=n,
        source="synthetic",
    )


def _frame(tokenizer: PromptTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special ids that the tokenizer puts before and after a text."""
    ids = tokenizer.encode(_PROBE)
    is_special = [token_id in tokenizer.special_ids for token_id in ids]
    start = is_special.index(False) if False in is_special else len(ids)
    end = len(ids)
    while end > start and is_special[end - 1]:
        end -= 1
    return tuple(ids[:start]), tuple(ids[end:])


def _draw(seed: int, index: int, ordinary_ids: Sequence[int], count: int) -> list[int]:
    # A text seed goes through SHA-512 and `random()` is the generator's raw output: both are fixed across Python
    # versions, which `choices` and `sample` are not.
    uniform = random.Random(f"{seed}:{index}").random
    size = len(ordinary_ids)
    return [ordinary_ids[int(uniform() * size)] for _ in range(count)]


def _prompt(index: int, token_ids: tuple[int, ...], tokenizer: PromptTokenizer) -> Prompt:
    return Prompt(index, tokenizer.decode(token_ids), token_ids, truncated=False, max_new_tokens=None)
