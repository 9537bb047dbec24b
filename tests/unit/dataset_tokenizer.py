"""A tokenizer whose ids a reader can compute: one per UTF-8 byte, after the special ones."""

from __future__ import annotations

from collections.abc import Sequence


class ByteTokenizer:
    """Id 0 pads, 1 begins, 2 ends a text; byte `b` is id `b + 3`."""

    def __init__(self, *, bos: bool = True, eos: bool = False) -> None:
        self._opening = [1] if bos else []
        self._closing = [2] if eos else []

    @property
    def vocab_size(self) -> int:
        return 256 + 3

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset({0, 1, 2})

    def encode(self, text: str) -> list[int]:
        return [*self._opening, *(byte + 3 for byte in text.encode()), *self._closing]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token_id - 3 for token_id in ids if token_id >= 3).decode(errors="replace")
