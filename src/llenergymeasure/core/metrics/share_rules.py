"""How the energy of a window is shared over its requests: two rules, by what the engine tells of its work.

By steps, where it tells them. Each step computed so many prefill and decode tokens, and its requests share it:

    step       |-------- 1 --------|-- 2 --|-------- 3 --------|-- 4 --|
    request 1  | 60 prefill tokens | 1 decode | 1 decode       | 1     |
    request 2                              | 40 prefill tokens | 10    |     a prompt that is cut into two steps
    energy              E1             E2           E3            E4         of each step, cut out of the trace

By times otherwise. Requests start, have their first token and their last; in a gap between two such instants every
active request works at one rate: its input tokens over the time of its prefill, or its further output tokens over the
time of its decoding.

In both, a token weighs the joules of such a token in the same run, and what flows while no request is served is shared
by the time that each took.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Protocol

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.backends.steps import EngineStep
from llenergymeasure.core.energy.spans import Span
from llenergymeasure.domain.latency import ShareRule
from llenergymeasure.domain.metrics import PhaseBreakdown


@dataclass(frozen=True, slots=True)
class Life:
    """When a request started, had its first token and its last, in seconds."""

    started_s: float
    first_s: float
    ended_s: float
    output: RequestOutput

    @property
    def instants_s(self) -> tuple[float, float, float]:
        """All three."""
        return self.started_s, self.first_s, self.ended_s

    @property
    def duration_s(self) -> float:
        """From its start to its last token."""
        return self.ended_s - self.started_s

    @property
    def prefill_tokens(self) -> int:
        """Input tokens that were computed for it: those that a cache of prefixes held were not."""
        return self.output.input_tokens - self.output.cached_tokens


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Joules of a token in prefill and in decode."""

    prefill_j: float = 1.0
    decode_j: float = 1.0


class Rule(Protocol):
    """A way to share the energy of a window."""

    @property
    def name(self) -> ShareRule:
        """What a result calls it."""

    def is_mixed(self) -> bool:
        """Whether prefill and decode share energy, so that the joules of their tokens matter."""

    def tokens(self, phases: PhaseBreakdown) -> tuple[int, int]:
        """Tokens that the energy of prefill and of decode in `phases` was spent on."""

    def instants_s(self) -> set[float]:
        """Where the energy of the window has to be cut."""

    def shares(self, instants_s: Sequence[float], gaps_j: Sequence[float], weights: TokenWeights) -> array[float]:
        """What each request gets of the gaps between `instants_s`, in joules."""


class ByTimes:
    """The rule for an engine that tells the instants of requests only."""

    name: Final = "instants"

    def __init__(self, lives: Sequence[Life]) -> None:
        self._lives = lives

    def is_mixed(self) -> bool:
        """Whether some request decodes while another one is in prefill."""
        prefills = sorted((life.started_s, life.first_s) for life in self._lives)
        starts_s = [start_s for start_s, _ in prefills]
        latest_s = list(accumulate((end_s for _, end_s in prefills), max))

        def meets_prefill(life: Life) -> bool:
            """Whether some prefill that starts before its decoding ends is over only after that has begun."""
            index = bisect_left(starts_s, life.ended_s) - 1
            return index >= 0 and latest_s[index] > life.first_s

        return any(life.first_s < life.ended_s and meets_prefill(life) for life in self._lives)

    def tokens(self, phases: PhaseBreakdown) -> tuple[int, int]:
        """See `Rule.tokens`."""
        cached = sum(life.output.cached_tokens for life in self._lives)
        prefill, decode = phases.prefill, phases.decode
        return prefill.tokens - cached if prefill else 0, decode.tokens if decode else 0

    def instants_s(self) -> set[float]:
        """See `Rule.instants_s`."""
        return {instant_s for life in self._lives for instant_s in life.instants_s}

    def shares(self, instants_s: Sequence[float], gaps_j: Sequence[float], weights: TokenWeights) -> array[float]:
        """By sums over gaps: a request weighs the same all through a phase."""
        lives = self._lives
        place = {instant_s: index for index, instant_s in enumerate(instants_s)}
        powers_w = [_powers_w(life, weights) for life in lives]
        changes = [0.0] * len(instants_s)
        for life, (prefill_w, decode_w) in zip(lives, powers_w, strict=True):
            changes[place[life.started_s]] += prefill_w
            changes[place[life.first_s]] += decode_w - prefill_w
            changes[place[life.ended_s]] -= decode_w
        active = _active(lives, place, len(gaps_j))
        # What is left of a sum after everybody has gone is rounding, not weight.
        sums = accumulate(changes)
        weights_w = [max(0.0, weight) if busy else 0.0 for weight, busy in zip(sums, active, strict=False)]
        per_weight = [gap_j / weight if weight > 0 else 0.0 for gap_j, weight in zip(gaps_j, weights_w, strict=True)]
        so_far = [0.0, *accumulate(per_weight)]
        shares_j = array("d")
        for life, (prefill_w, decode_w) in zip(lives, powers_w, strict=True):
            start, first, end = (so_far[place[instant_s]] for instant_s in life.instants_s)
            shares_j.append(prefill_w * (first - start) + decode_w * (end - first))
        idle_j = math.fsum(gap_j for gap_j, weight in zip(gaps_j, weights_w, strict=True) if weight <= 0)
        return _with_idle(shares_j, idle_j, lives)


def _powers_w(life: Life, weights: TokenWeights) -> tuple[float, float]:
    """A request's weight while in prefill and while decoding: tokens per second times joules per token."""
    prefill_s, decode_s = life.first_s - life.started_s, life.ended_s - life.first_s
    further = life.output.output_tokens - 1
    return (
        weights.prefill_j * life.prefill_tokens / prefill_s if prefill_s > 0 else 0.0,
        weights.decode_j * further / decode_s if decode_s > 0 else 0.0,
    )


def _active(lives: Sequence[Life], place: dict[float, int], gaps: int) -> list[bool]:
    """Of each gap, whether some request is active in it."""
    changes = [0] * (gaps + 1)
    for life in lives:
        changes[place[life.started_s]] += 1
        changes[place[life.ended_s]] -= 1
    return [count > 0 for count in accumulate(changes)][:gaps]


def _with_idle(shares_j: Sequence[float], idle_j: float, lives: Sequence[Life]) -> array[float]:
    """The shares, and of what flowed while nobody was served, each request's by the time that it took."""
    busy_s = math.fsum(life.duration_s for life in lives)
    parts = (life.duration_s / busy_s if busy_s > 0 else 1.0 / len(lives) for life in lives)
    return array("d", (share_j + idle_j * part for share_j, part in zip(shares_j, parts, strict=True)))


class BySteps:
    """The rule for an engine that tells its steps and when each ran, at whose ends all tokens of `lives` are there."""

    name: Final = "steps"

    def __init__(self, lives: Sequence[Life], steps: Sequence[EngineStep], spans: Sequence[Span]) -> None:
        import numpy as np

        self._lives = lives
        self._spans = spans
        self._prefill_tokens = np.array([step.prefill_tokens for step in steps])
        self._decode_tokens = np.array([step.decode_tokens for step in steps])
        self._prefills = np.array(list(_prefills(lives, steps)), dtype=int).reshape(-1, 3)
        self._decodes = list(_decodes(lives, np.array([step.ended_s for step in steps])))
        self._known = np.bincount(self._prefills[:, 0], weights=self._prefills[:, 2], minlength=len(steps))
        self._rows = np.zeros(len(steps))
        for places in self._decodes:
            self._rows[places] += 1

    def is_mixed(self) -> bool:
        """Whether some step computes tokens of both kinds."""
        return bool((self._prefill_tokens * self._decode_tokens).any())

    def tokens(self, phases: PhaseBreakdown) -> tuple[int, int]:
        """Those that were computed in steps with prefill, and in steps without."""
        return int(self._prefill_tokens.sum()), int(self._decode_tokens[self._prefill_tokens == 0].sum())

    def instants_s(self) -> set[float]:
        """See `Rule.instants_s`."""
        return {edge_s for span in self._spans for edge_s in span}

    def shares(self, instants_s: Sequence[float], gaps_j: Sequence[float], weights: TokenWeights) -> array[float]:
        """Each step by itself: its prefill by tokens, its decode by requests, which it computes alike."""
        import numpy as np

        # The energy of a step is that of the gap before its end.
        steps_j = np.asarray(gaps_j)[np.searchsorted(instants_s, [end_s for _, end_s in self._spans]) - 1]
        prefill = weights.prefill_j * self._prefill_tokens * (self._known > 0)
        decode = weights.decode_j * self._decode_tokens * (self._rows > 0)
        weighs = prefill + decode > 0
        scale = np.divide(steps_j, prefill + decode, out=np.zeros_like(steps_j), where=weighs)
        per_token, per_row = scale * prefill / np.maximum(self._known, 1), scale * decode / np.maximum(self._rows, 1)
        shares_j = np.array([per_row[places].sum() for places in self._decodes])
        steps, requests, tokens = self._prefills.T
        shares_j += np.bincount(requests, weights=per_token[steps] * tokens, minlength=len(shares_j))
        return _with_idle(shares_j.tolist(), math.fsum((*gaps_j, *-steps_j[weighs])), self._lives)


def _prefills(lives: Sequence[Life], steps: Sequence[EngineStep]) -> Iterator[tuple[int, int, int]]:
    """Which step computed how many input tokens of which request: (step, request, tokens).

    A request's last part is in the step of its first token. What a step computed beyond such parts is of the requests
    that have their first tokens next: engines fill a step in the order in which they took the requests up.
    """
    order = sorted(range(len(lives)), key=lambda each: (lives[each].first_s, lives[each].started_s))
    owed = [life.prefill_tokens for life in lives]
    begun = 0
    for index, step in enumerate(steps):
        left, position = step.prefill_tokens, begun
        while position < len(order):
            request = order[position]
            is_last = lives[request].first_s <= step.ended_s
            if not is_last and (left <= 0 or lives[request].started_s >= step.ended_s):
                break
            tokens = owed[request] if is_last else min(owed[request], left)
            if tokens and step.prefill_tokens:
                yield index, request, tokens
            owed[request] -= tokens
            left -= tokens
            position += 1
            begun += is_last


def _decodes(lives: Sequence[Life], ends_s: Any) -> Iterator[Any]:
    """Of each request, the steps that gave it tokens after its first: arrays of numpy's."""
    import numpy as np

    for life in lives:
        times_s = np.unique(life.output.token_times_s)
        yield np.searchsorted(ends_s, times_s[times_s > life.first_s]).astype(np.int32)
