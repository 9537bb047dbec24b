"""From the `dataset` of a configuration to the prompts of an experiment.

    aienergyscore                                  bundled with the package
    path/to/prompts.jsonl                          a file of the user's
    hf:<id>[/<config>][:<split>][@<revision>]      the Hub, or a local directory (hf:./path)
    SyntheticDatasetConfig                         exact lengths in tokens

Prompts are used as they stand, without a chat template, in file order, the first `n` of them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llenergymeasure.datasets.sources import HUB_PREFIX, load_hub_prompts, read_jsonl, too_few
from llenergymeasure.datasets.types import DatasetIdentity, Prompt, PromptSet, PromptTokenizer, RawPrompt, RawPrompts
from llenergymeasure.exceptions import DatasetError
from llenergymeasure.security import validate_path

if TYPE_CHECKING:
    from llenergymeasure.config.models import ExperimentConfig, SyntheticDatasetConfig

BUILTIN_DATASETS: Final = {"aienergyscore": Path(__file__).parent / "builtin" / "aienergyscore.jsonl"}
"""Data sets that come with the package, by the name a configuration uses."""

_RECIPE_VERSION: Final = 1
"""Of synthetic prompts; goes up whenever the same parameters would give other prompts. Part of their identity."""

_SUFFIX: Final = ".jsonl"

_CHARACTERS_PER_TOKEN: Final = 20
"""Of a text that is too long, so much is tokenised at first for each token that is wanted; most texts have 4 to 5."""

_BEYOND: Final = 64
"""Tokens at the end of a cut text that are thrown away: the last ones may depend on what came after."""


def load_prompts(config: ExperimentConfig, tokenizer: PromptTokenizer, raw: RawPrompts | None = None) -> PromptSet:
    """Read an experiment's `n` prompts and tokenise each of them once, to at most `max_input_tokens` ids.

    Args:
        raw: What `load_raw_prompts` gave for this experiment; `None`: it is asked.

    Raises:
        DatasetError: See `load_raw_prompts`; also a prompt that the tokenizer turns into no token at all.
    """
    raw = raw or load_raw_prompts(config.dataset, config.n)
    if isinstance(config.dataset, str):
        prompts = tuple(_tokenise(index, prompt, config, tokenizer) for index, prompt in enumerate(raw.prompts))
    else:
        prompts = make_prompts(config.dataset, config.n, tokenizer)
    return PromptSet(prompts, raw.identity, truncated_count=sum(prompt.truncated for prompt in prompts))


def load_raw_prompts(dataset: str | SyntheticDatasetConfig, n: int) -> RawPrompts:
    """Read the first `n` prompts of a data set, or find out that they cannot be had; needs no tokenizer.

    Raises:
        DatasetError: Unknown name, missing or unreadable file, bad line, empty data set, or fewer than `n` prompts.
        ConfigError: A path that is unsafe to open.
    """
    if not isinstance(dataset, str):
        if n > dataset.n:
            raise too_few("synthetic", dataset.n, n)
        return RawPrompts((), synthetic_identity(dataset, n))
    if dataset in BUILTIN_DATASETS:
        return read_jsonl(BUILTIN_DATASETS[dataset], n, name=dataset, source="builtin")
    if dataset.startswith(HUB_PREFIX):
        return load_hub_prompts(dataset, n)
    if _is_jsonl(dataset):
        return read_jsonl(_existing_file(dataset), n, name=dataset)
    raise DatasetError(_unknown(dataset))


def make_prompts(config: SyntheticDatasetConfig, n: int, tokenizer: PromptTokenizer) -> tuple[Prompt, ...]:
    """Make the first `n` prompts, each of exactly `config.input_len` tokens, random ids of the model's own vocabulary.

    The ids are drawn directly: text that is encoded again would come out longer or shorter. Prompt `i` depends on the
    seed, `i`, the length and the vocabulary, so a smaller `n` gives the beginning of a larger one. The special ids that
    the tokenizer itself puts around a text (BOS, mostly) are there and count; no other special id occurs.

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
    bodies = (_draw(config.seed, index, ordinary_ids, body_len) for index in range(n))
    made = ((*opening, *body, *closing) for body in bodies)
    return tuple(Prompt(index, tokenizer.decode(ids), ids, False, None) for index, ids in enumerate(made))


def synthetic_identity(config: SyntheticDatasetConfig, n: int) -> DatasetIdentity:
    """Identity of the first `n` prompts; the pool's size is not in it, for it does not change them."""
    parameters = {
        "input_len": config.input_len,
        "output_len": config.output_len,
        "recipe": _RECIPE_VERSION,
        "seed": config.seed,
    }
    canonical = json.dumps(parameters, sort_keys=True, separators=(",", ":"))
    return DatasetIdentity(
        name=f"synthetic-{config.input_len}-{config.output_len}-seed{config.seed}",
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        prompt_count=n,
        source="synthetic",
    )


def _first_ids(text: str, count: int, tokenizer: PromptTokenizer) -> list[int]:
    """The ids of `text`; of a very long one not all, but `count` of them and some beyond, unchanged by the cut."""
    length = _CHARACTERS_PER_TOKEN * (count + _BEYOND)
    token_ids = tokenizer.encode(text[:length])
    while length < len(text) and len(token_ids) < count + _BEYOND:
        length *= 4
        token_ids = tokenizer.encode(text[:length])
    return token_ids


def _tokenise(index: int, prompt: RawPrompt, config: ExperimentConfig, tokenizer: PromptTokenizer) -> Prompt:
    token_ids = _first_ids(prompt.text, config.max_input_tokens, tokenizer)
    if not token_ids:
        raise DatasetError(f"dataset {config.dataset}: the model's tokenizer makes no token of prompt {index + 1}")
    limit = prompt.max_new_tokens
    return Prompt(
        index=index,
        text=prompt.text,
        token_ids=tuple(token_ids[: config.max_input_tokens]),
        truncated=len(token_ids) > config.max_input_tokens,
        max_new_tokens=None if limit is None else min(limit, config.max_output_tokens),
    )


def _is_jsonl(name: str) -> bool:
    return name.lower().endswith(_SUFFIX)


def _existing_file(dataset: str) -> Path:
    path = validate_path(dataset, what="dataset")
    if path.is_file():
        return path
    if path.exists():
        raise DatasetError(f"dataset {dataset}: not a file")
    if not path.parent.is_dir():
        raise DatasetError(f"dataset {dataset}: no such file; the directory {path.parent} does not exist either")
    beside = {file.name.lower(): file.name for file in path.parent.glob("*") if _is_jsonl(file.name)}
    near = [beside[name] for name in difflib.get_close_matches(path.name.lower(), beside, n=1)]
    raise DatasetError(f"dataset {dataset}: no such file in {path.parent}" + _did_you_mean(near))


def _unknown(dataset: str) -> str:
    ways = f"Use one of {', '.join(BUILTIN_DATASETS)}, a path ending in {_SUFFIX}, or {HUB_PREFIX}<Hub id>"
    if validate_path(dataset, what="dataset").is_file():
        return f"dataset {dataset}: only JSON Lines files are read, by their suffix {_SUFFIX}. {ways}."
    if dataset.count("/") == 1:
        near = [f"{HUB_PREFIX}{dataset}"]
    else:
        near = difflib.get_close_matches(dataset.lower(), BUILTIN_DATASETS, n=1)
    return f"dataset {dataset}: unknown name{_did_you_mean(near)} {ways}."


def _did_you_mean(near: list[str]) -> str:
    return f". Did you mean '{near[0]}'?" if near else "."


def _frame(tokenizer: PromptTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special ids that the tokenizer puts before and after a text."""
    ids = tokenizer.encode("a")
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
