"""What TensorRT-LLM answers, token by token, and when each token was there.

Its metrics of a request hold four instants on the system's monotonic clock: arrival, first scheduling, first and last
token. Those are taken from there. In between, a token's instant is that at which its message came, kept between the
two: late by the way from the engine's process, well below a step.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from llenergymeasure.core.backends.protocol import FinishReason, GenerationRequest, RequestOutput
from llenergymeasure.core.clock import Clock
from llenergymeasure.exceptions import BackendError

FINISH_REASONS: Final[dict[str | None, FinishReason]] = {"stop": "eos", "length": "length"}
"""Ours for TensorRT-LLM's; any other one means that it gave the request up."""


@dataclass(slots=True)
class Answer:
    """What came of one request; instants are on the measurement clock."""

    token_times_s: array[float] = field(default_factory=lambda: array("d"))
    completion: Any = None


def ask(llm: Any, prompts: Sequence[tuple[list[int], Any]], salt: dict[str, str], clock: Clock) -> list[Answer]:
    """Hand all prompts with their `SamplingParams` to the engine at once, and wait for the last token.

    Args:
        salt: `cache_salt`, or nothing where the version has no such argument.
    """
    asked = partial(asyncio.run, _ask(llm, prompts, salt, clock))
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
    async for output in stream:
        now_s = clock.now()
        (answer.completion,) = output.outputs
        news = len(answer.completion.token_ids) - len(answer.token_times_s)
        answer.token_times_s.extend([now_s] * news)
    return answer


def request_output(
    request: GenerationRequest, answer: Answer, eos_token_ids: Sequence[int], clock: Clock
) -> RequestOutput:
    """What the request produced.

    Raises:
        BackendError: The engine gave it up, or told something that is not understood.
    """
    ids = tuple(answer.completion.token_ids) if answer.completion is not None else ()
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
    arrived_s, started_s, times_s = _instants(request, answer, clock)
    return RequestOutput(
        index=request.index,
        input_tokens=len(request.token_ids),
        token_ids=ids,
        finish_reason=reason,
        started_s=started_s,
        token_times_s=times_s,
        queued_s=max(started_s - arrived_s, 0.0),
    )


def _instants(request: GenerationRequest, answer: Answer, clock: Clock) -> tuple[float, float, array[float]]:
    """Arrival, first scheduling, and each token's instant."""
    metrics = getattr(answer.completion, "request_perf_metrics", None)
    if metrics is None:
        raise BackendError(
            f"prompt {request.index}: TensorRT-LLM told no instants of the request, without which it cannot be timed. "
            "Use a later version of it."
        )
    ahead_s = clock.now() - time.monotonic()
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
    between = (min(max(instant, first_s), last_s) for instant in answer.token_times_s[1:-1])
    ends = [last_s] if len(answer.token_times_s) > 1 else []
    return arrived_s, started_s, array("d", [first_s, *between, *ends])
