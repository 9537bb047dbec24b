"""The engine's steps, put together from what TensorRT-LLM tells of each request: nothing more is asked of it for them.

Its metrics name the iterations of a request's first and last token, and it sends a message for each token, so that the
message says which iteration it was of. Requests of one iteration were in one step:

    iteration      7     8     9    10     ● the engine's own instant: of a first or last token,
    request A      ●━━━━━○━━━━━●             or, where they are told (1.3 and later), of every token
    request B            ●━━━━━○━━━━━●     ○ as its message came: late by the way from the engine's process

Its statistics of iterations (`get_stats`) would not do: they have no instants or, in later versions, the wall clock's
at the start of a step, and to have them costs a query of the device's memory in every step. What belongs to a step
that gave no token is not told: earlier chunks of a prompt, drafts that were rejected. Then there are no steps.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isnan, nan

from llenergymeasure.core.backends.steps import StepLog


@dataclass(frozen=True, slots=True)
class Stay:
    """A request in the engine's batch: one token in each iteration from `first` on.

    Args:
        times_s: When each token was there; the first and the last one's instants are the engine's own.
        computed_tokens: Input tokens that were computed in the first iteration.
    """

    first: int
    times_s: Sequence[float]
    computed_tokens: int

    @property
    def end(self) -> int:
        """The iteration after the last one."""
        return self.first + len(self.times_s)


def engine_steps(stays: Sequence[Stay]) -> tuple[StepLog, list[array[float]]] | None:
    """The steps, and every token's instant as the end of its step; `None` where the instants contradict the iterations.

    It takes a pass over the iterations and one over the requests, not one over all tokens: the window is open.
    """
    low = min(stay.first for stay in stays)
    ends_s = _ends(stays, low)
    if ends_s is None:
        return None
    running, starting, prompts = ([0] * (len(ends_s) + 1) for _ in range(3))
    for stay in stays:
        running[stay.first - low] += 1
        running[stay.end - low] -= 1
        starting[stay.first - low] += 1
        prompts[stay.first - low] += stay.computed_tokens
    steps = StepLog()
    for end_s, count, started, prompt in zip(ends_s, accumulate(running), starting, prompts, strict=False):
        if count:  # the engine may have had nothing to do for an iteration
            steps.add(end_s, count, prompt, count - started)
    return steps, [ends_s[stay.first - low : stay.end - low] for stay in stays]


def _ends(stays: Sequence[Stay], low: int) -> array[float] | None:
    """When each iteration from `low` on was over; `nan` where nobody was in it."""
    ends_s = array("d", [nan]) * (max(stay.end for stay in stays) - low)
    covered = low
    for stay in sorted(stays, key=lambda stay: stay.first):
        start = max(stay.first, covered)
        if start < stay.end:
            ends_s[start - low : stay.end - low] = array("d", stay.times_s[start - stay.first :])
            covered = stay.end
    exact: dict[int, float] = {}
    for stay in stays:
        for iteration, instant_s in ((stay.first, stay.times_s[0]), (stay.end - 1, stay.times_s[-1])):
            exact[iteration - low] = max(exact.get(iteration - low, -inf), instant_s)
    return ends_s if _put_in_order(ends_s, exact) else None


def _put_in_order(ends_s: array[float], exact: dict[int, float]) -> bool:
    """Keep what messages told between the exact instants; whether these are in order."""
    for index, instant_s in exact.items():
        ends_s[index] = instant_s
    next_s = inf
    for index in range(len(ends_s) - 1, -1, -1):
        if isnan(ends_s[index]):
            continue
        if index in exact and ends_s[index] > next_s:
            return False
        next_s = ends_s[index] = min(ends_s[index], next_s)
    return True
