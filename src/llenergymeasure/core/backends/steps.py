"""What an engine did step by step: when each step was over, how many requests were in it, and what it computed."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llenergymeasure.core.backends.protocol import RequestOutput


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


def steps_of_batch(outputs: Sequence[RequestOutput]) -> StepLog | None:
    """The steps of a batch that begins as one and is not refilled; `None` where its tokens have no instants.

    A row that has ended may be computed on until the batch ends; it is no longer counted.
    """
    times_s = max((output.token_times_s or () for output in outputs), key=len, default=())
    if not times_s or any(output.token_times_s is None for output in outputs):
        return None
    lengths = sorted(output.output_tokens for output in outputs)
    log = StepLog()
    log.add(times_s[0], len(outputs), sum(output.input_tokens for output in outputs), 0)
    running = tokens = 0
    for position in range(1, len(times_s)):
        alive = len(lengths) - bisect_right(lengths, position)
        running, tokens = running or alive, tokens + alive
        if position + 1 == len(times_s) or times_s[position + 1] > times_s[position]:  # else drafted: of the same step
            log.add(times_s[position], running, 0, tokens)
            running = tokens = 0
    return log
