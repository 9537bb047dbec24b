"""What an engine did step by step: when each step was over, how many requests were in it, and what it computed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStep:
    """One pass of the model over a batch.

    Args:
        ended_s: When its tokens were there, on the measurement clock.
        requests: Requests that were computed in it.
        prefill_tokens: Input tokens computed; a prompt may be cut into several steps, and what a cache of prefixes
            already holds is not computed again.
        decode_tokens: Tokens computed to continue texts, drafted ones included.
    """

    ended_s: float
    requests: int
    prefill_tokens: int
    decode_tokens: int


class StepLog:
    """The steps of a window in order, kept as columns: 20 bytes a step."""

    def __init__(self) -> None:
        self._ended_s = array("d")
        self._requests, self._prefill_tokens, self._decode_tokens = array("i"), array("i"), array("i")

    def __len__(self) -> int:
        return len(self._ended_s)

    def __iter__(self) -> Iterator[EngineStep]:
        columns = zip(self._ended_s, self._requests, self._prefill_tokens, self._decode_tokens, strict=True)
        return (EngineStep(*row) for row in columns)

    def add(self, ended_s: float, requests: int, prefill_tokens: int, decode_tokens: int) -> None:
        """Add a step; see `EngineStep`."""
        self._ended_s.append(ended_s)
        self._requests.append(requests)
        self._prefill_tokens.append(prefill_tokens)
        self._decode_tokens.append(decode_tokens)

    def extend(self, steps: StepLog) -> None:
        """Add the steps of another log."""
        self._ended_s.extend(steps._ended_s)
        self._requests.extend(steps._requests)
        self._prefill_tokens.extend(steps._prefill_tokens)
        self._decode_tokens.extend(steps._decode_tokens)


def joined(steps: StepLog | None, more: StepLog | None) -> StepLog | None:
    """`steps`, with `more` added; `None` where either is not told: what is missing would pass for idle time."""
    if steps is None or more is None:
        return None
    steps.extend(more)
    return steps
