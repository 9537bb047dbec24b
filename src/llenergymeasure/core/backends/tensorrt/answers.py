"""What TensorRT-LLM answers, token by token, and when each token was there.

Its metrics of a request hold four instants on the system's monotonic clock: arrival, first scheduling, first and last
token. Those are taken from there. In between, a token's instant is the engine's own where it tells each one's (1.3 and
later); otherwise that at which its message came, kept between the two: late by the way from the engine's process, well
below a step.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from llenergymeasure.core.backends.protocol import FinishReason, GenerationOutput, GenerationRequest, RequestOutput
from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.backends.tensorrt.iterations import Stay, engine_steps
from llenergymeasure.core.backends.tensorrt.liveness import Workers
from llenergymeasure.core.clock import Clock
from llenergymeasure.exceptions import BackendError

FINISH_REASONS: Final[dict[str | None, FinishReason]] = {"stop": "eos", "length": "length"}
"""Ours for TensorRT-LLM's; any other one means that it gave the request up."""

CLOCKS_AGREE_S: Final = 1e-3
"""How far two of its notes of one instant, a first token's, may be apart, in seconds; else they are of two clocks."""


@dataclass(slots=True)
class Answer:
    """What came of one request; instants are on the measurement clock.

    Args:
        token_times_s: When the message of each token came.
        is_single: Whether each message had one token.
        result: Its `RequestOutput`; `None`: nothing came.
    """

    token_times_s: array[float] = field(default_factory=lambda: array("d"))
    is_single: bool = True
    result: Any = None

    @property
    def completion(self) -> Any:
        """Its `CompletionOutput`; `None`: nothing came."""
        return None if self.result is None else self.result.outputs[0]


def ask(
    llm: Any, prompts: Sequence[tuple[list[int], Any]], salt: dict[str, str], clock: Clock, workers: Workers
) -> list[Answer]:
    """Hand all prompts with their `SamplingParams` to the engine at once, and wait for the last token.

    Args:
        salt: `cache_salt`, or nothing where the version has no such argument.
        workers: Nobody answers when one of them has ended.

    Raises:
        WorkerEndedError: So it was.
    """
    asked = partial(asyncio.run, workers.while_they_live(partial(_ask, llm, prompts, salt, clock)))
    if not _runs_a_loop():
        return asked()
    with ThreadPoolExecutor(max_workers=1) as beside:  # a notebook: this thread's loop waits for this very call
        return beside.submit(asked).result()


def _runs_a_loop() -> bool:
    """Whether this thread is in the middle of an event loop, where no other one can run."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _ask(llm: Any, prompts: Sequence[tuple[list[int], Any]], salt: dict[str, str], clock: Clock) -> list[Answer]:
    streams: list[Any] = []
    try:
        for ids, parameters in prompts:
            streams.append(llm.generate_async(ids, sampling_params=parameters, streaming=True, **salt))
        return await asyncio.gather(*(_read(stream, clock) for stream in streams))
    except BaseException:
        for stream in streams:
            with suppress(Exception):  # an engine that died has nothing left to give up
                stream.abort()
        raise


async def _read(stream: Any, clock: Clock) -> Answer:
    answer = Answer()
    async for result in stream:
        now_s = clock.now()
        answer.result = result
        news = len(answer.completion.token_ids) - len(answer.token_times_s)
        answer.token_times_s.extend([now_s] * news)
        answer.is_single &= news <= 1
    return answer


@dataclass(frozen=True, slots=True)
class _Told:
    """What was told of one request, instants on the measurement clock.

    Args:
        times_s: When each token was there.
        iterations: Numbers of those of the first and last token; `None`: not told.
        chunks: In how many pieces the prompt was computed; `None`: not told.
    """

    arrived_s: float
    started_s: float
    times_s: array[float]
    iterations: tuple[int, int] | None
    chunks: int | None


def generation_output(
    requests: Sequence[GenerationRequest],
    answers: Sequence[Answer],
    eos_token_ids: Sequence[int],
    clock: Clock,
    cuts_prompts: bool | None,
) -> GenerationOutput:
    """What the requests produced.

    Args:
        cuts_prompts: Whether a prompt may be computed in pieces; `None`: its tokens and its steps do not correspond.

    Raises:
        BackendError: The engine gave one up, or told something that is not understood.
    """
    ahead_s = clock.now() - time.monotonic()
    for request, answer in zip(requests, answers, strict=True):
        _check(request, answer, eos_token_ids)
    told = [_told(request, answer, ahead_s) for request, answer in zip(requests, answers, strict=True)]
    steps: StepLog | None = None
    times_s = [each.times_s for each in told]
    if cuts_prompts is not None and (found := _steps(requests, answers, told, cuts_prompts)) is not None:
        steps, times_s = found
    outputs = tuple(map(_request_output, requests, answers, told, times_s))
    return GenerationOutput(outputs, steps=steps)


def _check(request: GenerationRequest, answer: Answer, eos_token_ids: Sequence[int]) -> None:
    """Refuse a text that the engine gave up, or ended as it was not asked to."""
    ids = answer.completion.token_ids if answer.completion is not None else ()
    told = answer.completion.finish_reason if answer.completion is not None else None
    reason = FINISH_REASONS.get(told)
    if reason is None or not ids:
        raise BackendError(
            f"prompt {request.index}: TensorRT-LLM gave it up ({told}) after {len(ids)} tokens. Its log tells why."
        )
    if len(ids) < request.min_new_tokens or (reason == "eos" and ids[-1] not in eos_token_ids):
        raise BackendError(
            f"prompt {request.index}: TensorRT-LLM ended it after {len(ids)} tokens ({told}), without an "
            "end-of-sequence token or before decoder.min_new_tokens; this version of it is not understood. "
            "Force the length: decoder.min_new_tokens equal to max_output_tokens."
        )


def _told(request: GenerationRequest, answer: Answer, ahead_s: float) -> _Told:
    metrics = getattr(answer.completion, "request_perf_metrics", None)
    if metrics is None:
        raise BackendError(
            f"prompt {request.index}: TensorRT-LLM told no instants of the request, without which it cannot be timed. "
            "Use a later version of it."
        )
    timing = metrics.timing_metrics
    arrived_s, started_s, first_s, last_s = (
        instant.total_seconds() + ahead_s
        for instant in (
            timing.arrival_time,
            timing.first_scheduled_time,
            timing.first_token_time,
            timing.last_token_time,
        )
    )
    if not started_s < first_s <= last_s:
        raise BackendError(
            f"prompt {request.index}: TensorRT-LLM's instants are out of order (scheduled {started_s:.6f} s, tokens "
            f"{first_s:.6f} to {last_s:.6f} s); this version of it is not understood."
        )
    breakdown = getattr(answer.result, "time_breakdown_metrics", None) or {}
    chunks = breakdown.get("ctx_chunk_metrics") or ()
    iterations = (metrics.first_iter, metrics.last_iter)
    return _Told(
        arrived_s=arrived_s,
        started_s=started_s,
        times_s=_token_times(answer, breakdown, first_s, last_s, ahead_s),
        iterations=None if None in iterations else iterations,
        chunks=len(chunks) or None,
    )


def _token_times(
    answer: Answer, breakdown: Mapping[str, Any], first_s: float, last_s: float, ahead_s: float
) -> array[float]:
    """Each token's instant, in order: the engine's own, or in between that of its message."""
    entries = [*(breakdown.get("ctx_chunk_metrics") or ())[-1:], *(breakdown.get("step_metrics") or ())]
    own_s = array("d", [entry["token_time"] + ahead_s for entry in entries])
    count = len(answer.token_times_s)
    are_told = len(own_s) == count and abs(own_s[0] - first_s) <= CLOCKS_AGREE_S
    between_s = (own_s if are_told else answer.token_times_s)[1:-1]
    before, until = bisect_left(between_s, first_s), bisect_right(between_s, last_s)
    kept_s = array("d", [first_s]) * (before + 1) + between_s[before:until]
    return kept_s + array("d", [last_s]) * (count - len(kept_s))


def _steps(
    requests: Sequence[GenerationRequest], answers: Sequence[Answer], told: Sequence[_Told], cuts_prompts: bool
) -> tuple[StepLog, list[array[float]]] | None:
    """The steps, with the tokens' instants as their ends; `None` where one request does not tell which were its own."""
    stays: list[Stay] = []
    for request, answer, each in zip(requests, answers, told, strict=True):
        is_whole = not cuts_prompts if each.chunks is None else each.chunks == 1
        if each.iterations is None or not answer.is_single or not is_whole:
            return None
        first, last = each.iterations
        # The last token may bear the number of the one before it: the count stands still while nothing is left to run.
        if last - first not in (len(each.times_s) - 1, len(each.times_s) - 2):
            return None  # it was pushed out of the batch for a while
        stays.append(Stay(first, each.times_s, len(request.token_ids) - _cached(answer)))
    newest = max(each.iterations[1] for each in told if each.iterations is not None)
    if any(len(stay.times_s) == 1 and stay.first == newest for stay in stays):
        return None  # that the count stood still would not be seen
    return engine_steps(stays)


def _cached(answer: Answer) -> int:
    """Input tokens that the cache of prefixes held; 1.0, where it is off, does not tell."""
    return int(getattr(answer.result, "cached_tokens", 0))


def _request_output(request: GenerationRequest, answer: Answer, told: _Told, times_s: array[float]) -> RequestOutput:
    return RequestOutput(
        index=request.index,
        input_tokens=len(request.token_ids),
        token_ids=tuple(answer.completion.token_ids),
        finish_reason=FINISH_REASONS[answer.completion.finish_reason],
        started_s=told.started_s,
        token_times_s=times_s,
        queued_s=max(told.started_s - told.arrived_s, 0.0),
        cached_tokens=_cached(answer),
    )
