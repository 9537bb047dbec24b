"""A transformers tokenizer in the role that prompts need."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class TransformersTokenizer:
    """Encodes prompts with the model's own tokenizer and its own special tokens.

    Args:
        tokenizer: The tokenizer that belongs to the model.
    """

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
