"""The model: a Markov chain over the characters of a text, and its tokenizer. A token is a character."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

END = 0
"""End of a text: a line of the training text ends with it."""


class CharacterTokenizer:
    """Ids of the characters of a text; any other character is read as a space."""

    def __init__(self, text: str) -> None:
        self._characters = ["\n", *sorted({*text, " "} - {"\n"})]
        self._ids = {character: token for token, character in enumerate(self._characters)}
        self.vocab_size = len(self._characters)
        self.special_ids = frozenset({END})

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(character, self._ids[" "]) for character in text.replace("\n", " ")]

    def encode_line(self, line: str) -> list[int]:
        return [*self.encode(line), END]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._characters[token] for token in ids)


class MarkovChain:
    """How often each character follows the last `order` ones."""

    def __init__(self, path: Path, order: int) -> None:
        text = path.read_text(encoding="utf-8")
        self.tokenizer = CharacterTokenizer(text)
        self.order = order
        self._follows: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for line in filter(str.strip, text.splitlines()):
            ids = self.tokenizer.encode_line(line)
            for place, token in enumerate(ids):
                for length in range(order + 1):  # shorter contexts are what is known where a longer one is new
                    if place >= length:
                        self._follows[tuple(ids[place - length : place])][token] += 1
        self.transitions = sum(map(len, self._follows.values()))

    def next_token(self, context: Sequence[int], dice: random.Random | None, may_end: bool) -> int:
        """The likeliest next token, or one drawn with `dice` by how often it followed."""
        for length in range(min(self.order, len(context)), -1, -1):
            seen = self._follows.get(tuple(context[len(context) - length :]), Counter())
            choices = {token: count for token, count in seen.items() if may_end or token != END}
            if choices and dice is None:
                return max(choices, key=lambda token: (choices[token], token))
            if choices and dice is not None:
                return dice.choices(list(choices), weights=list(choices.values()))[0]
        raise ValueError("the training text holds no character")
