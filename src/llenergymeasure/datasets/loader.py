"""From the `dataset` of a configuration to the prompts of an experiment.

    aienergyscore                                  bundled with the package
    path/to/prompts.jsonl                          a file of the user's
    hf:<id>[/<config>][:<split>][@<revision>]      the Hub, or a local directory (hf:./path)
    SyntheticDatasetConfig                         exact lengths in tokens

Prompts are used as they stand, without a chat template, in file order, the first `n` of them.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llenergymeasure.datasets.hub import HUB_PREFIX, load_hub_prompts
from llenergymeasure.datasets.jsonl import read_jsonl, too_few
from llenergymeasure.datasets.synthetic import make_prompts, synthetic_identity
from llenergymeasure.datasets.types import Prompt, PromptSet, PromptTokenizer, RawPrompt, RawPrompts
from llenergymeasure.exceptions import DatasetError
from llenergymeasure.security import validate_path

if TYPE_CHECKING:
    from llenergymeasure.config.models import ExperimentConfig, SyntheticDatasetConfig

_BUILTIN_DIR: Final = Path(__file__).parent / "builtin"

BUILTIN_DATASETS: Final = {"aienergyscore": _BUILTIN_DIR / "aienergyscore.jsonl"}
"""Data sets that come with the package, by the name a configuration uses."""

_SUFFIX: Final = ".jsonl"


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
    if dataset.endswith(_SUFFIX):
        return read_jsonl(_existing_file(dataset), n, name=dataset)
    raise DatasetError(_unknown(dataset))


def _tokenise(index: int, prompt: RawPrompt, config: ExperimentConfig, tokenizer: PromptTokenizer) -> Prompt:
    token_ids = tokenizer.encode(prompt.text)
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


def _existing_file(dataset: str) -> Path:
    path = validate_path(dataset, what="dataset")
    if path.is_file():
        return path
    if path.exists():
        raise DatasetError(f"dataset {dataset}: not a file")
    if not path.parent.is_dir():
        raise DatasetError(f"dataset {dataset}: no such file; the directory {path.parent} does not exist either")
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob(f"*{_SUFFIX}")], n=1)
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
