"""What the data sets hand to the layers above: prompts, their identity, and the tokenizer they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol, runtime_checkable

DatasetSource = Literal["builtin", "file", "directory", "hub", "synthetic"]


@runtime_checkable
class PromptTokenizer(Protocol):
    """A model's own tokenizer, as far as prompts need it."""

    @property
    def vocab_size(self) -> int:
        """Number of ids the model takes as input: 0 to `vocab_size - 1`."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids with a meaning of their own: BOS, EOS, padding and the like."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as the model wants to see it, its own BOS included."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; undecodable bytes become replacement characters."""


@dataclass(frozen=True, slots=True)
class DatasetIdentity:
    """Which prompts an experiment used, for results, resume and comparison.

    Args:
        name: As the configuration names it.
        sha256: 64 hex digits; depends on the data set alone, never on the model or its tokenizer. Of a JSONL file (the
            bundled ones too): over its bytes. Of Hub data: over the prompts used, one canonical JSON line each. Of
            synthetic prompts: over their parameters and the version of the recipe.
        revision: Commit of a data set on the Hub; `None` for everything else, and where the Hub did not tell.
    """

    name: str
    sha256: str
    prompt_count: int
    source: DatasetSource
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt as it stands in the data set, with the data set's own limit for its output, in tokens."""

    text: str
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RawPrompts:
    """Prompts that could be read, in file order; none of synthetic data, which has no text without a tokenizer."""

    prompts: tuple[RawPrompt, ...]
    identity: DatasetIdentity


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as every engine sees it.

    Args:
        text: As it was before truncation; `None` where there is none.
        token_ids: Input ids, BOS included, cut to the experiment's `max_input_tokens`.
        max_new_tokens: Most output tokens for this prompt where the data set sets a limit, never above the
            experiment's; `None`: the experiment's `max_output_tokens` alone.
    """

    index: int
    text: str | None
    token_ids: tuple[int, ...]
    truncated: bool
    max_new_tokens: int | None


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All prompts of one experiment, in the order in which they are measured."""

    prompts: tuple[Prompt, ...]
    identity: DatasetIdentity
    truncated_count: int


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of `count` processes this one is, counted from 0."""

    index: int = 0
    count: int = 1

    def of(self, prompts: PromptSet) -> PromptSet:
        """Every `count`-th prompt from the `index`-th on: the shards are disjoint and together are all prompts.

        Dealt out in turns, because neighbours in a data set are often alike in length.
        """
        own = prompts.prompts[self.index :: self.count]
        return replace(prompts, prompts=own, truncated_count=sum(prompt.truncated for prompt in own))


WHOLE: Final = Shard()
"""The shard of an experiment that runs in one process."""
