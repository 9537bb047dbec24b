"""The model's own tokenizer, loaded, and in the role that prompts need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.model.source import ModelSource, first_line
from llenergymeasure.exceptions import BackendError

TOKENIZER_FILES: Final = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
"""What tokenizers of all kinds are kept in."""


def load_tokenizer(config: ExperimentConfig, source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        BackendError: The model comes without one, or it cannot be read.
    """
    try:
        return source.patiently(AutoTokenizer.from_pretrained)(
            source.location, trust_remote_code=config.trust_remote_code, **source.loader_arguments
        )
    except Exception as error:  # what a tokenizer's files can fail with is open-ended
        if _comes_without_tokenizer(source):
            raise BackendError(
                f"model: {config.model} comes without a tokenizer: {source.location} holds none of its files. "
                "Put them beside the weights (save_pretrained into the same directory)."
            ) from error
        raise BackendError(
            f"model: the tokenizer of {config.model} cannot be loaded ({first_line(error)}). "
            f"Fetch or save its files anew; they are looked for in {source.location}."
        ) from error


def _comes_without_tokenizer(source: ModelSource) -> bool:
    if source.revision is not None:
        return False  # on the Hub, whose files are not listed here
    return not any(next(Path(source.location).glob(pattern), None) for pattern in TOKENIZER_FILES)


class TransformersTokenizer:
    """Encodes prompts with the model's own tokenizer and its own special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._tokenizer)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of BOS, EOS, padding and other added control tokens."""
        control = (token_id for token_id, token in self._tokenizer.added_tokens_decoder.items() if token.special)
        return frozenset(self._tokenizer.all_special_ids).union(control)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with what the tokenizer itself puts before and after it."""
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
