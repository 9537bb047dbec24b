"""Every token's instant and every step's batch, taken from what vLLM's engine core hands to its front.

vLLM keeps the first and the last token's instant of a request, and counts of a step without its requests. Between the
two, in the message that the core sends after each step, is all of it: which requests got tokens, how many prefill and
decode tokens were computed, and the instant on the core's monotonic clock, which all processes of a machine share.
Listening there costs a few microseconds a step; vLLM's own statistics in the front, which cost more, stay off.

    core (may be a process of its own)  ── step ── message: instant, tokens of requests, batch ──▶  front ──▶ texts
                                                                  └──▶ StepListener
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.engine import EngineCoreEventType

from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.clock import Clock


@dataclass(slots=True)
class RequestTimes:
    """What is told of one request, its instants on the measurement clock in seconds; `None`: not told yet."""

    queued_s: float | None = None
    started_s: float | None = None
    token_times_s: array[float] = field(default_factory=lambda: array("d"))
    preemptions: int = 0


class StepListener:
    """Notes the messages of the engine core, its instants moved to the measurement clock."""

    def __init__(self, clock: Clock) -> None:
        self.requests: dict[str, RequestTimes] = {}
        self.steps = StepLog()
        self._ahead_s = clock.now() - time.monotonic()

    def note(self, outputs: Any) -> None:
        """Note one message (`EngineCoreOutputs`)."""
        ended_s = outputs.timestamp + self._ahead_s
        for output in outputs.outputs:
            times = self.requests.get(output.request_id)
            if times is None:
                times = self.requests[output.request_id] = RequestTimes()
            if output.events:
                self._note_events(times, output.events)
            for _ in output.new_token_ids:
                times.token_times_s.append(ended_s)
        batch = outputs.scheduler_stats.iteration_details if outputs.scheduler_stats is not None else None
        if batch is not None:
            requests = batch.num_ctx_requests + batch.num_generation_requests
            self.steps.add(ended_s, requests, batch.num_ctx_tokens, batch.num_generation_tokens)

    def _note_events(self, times: RequestTimes, events: list[Any]) -> None:
        """The first of each kind: a request that was pushed out and begins again keeps its start."""
        for event in events:
            if event.type == EngineCoreEventType.QUEUED and times.queued_s is None:
                times.queued_s = event.timestamp + self._ahead_s
            elif event.type == EngineCoreEventType.SCHEDULED and times.started_s is None:
                times.started_s = event.timestamp + self._ahead_s
            elif event.type == EngineCoreEventType.PREEMPTED:
                times.preemptions += 1


@contextmanager
def listening(core: Any, note: Callable[[Any], None]) -> Iterator[None]:
    """While this is open, `note` gets every message that the front takes from `core` (an `EngineCoreClient`)."""
    get_output = core.get_output

    def noted() -> Any:
        outputs = get_output()
        note(outputs)
        return outputs

    core.get_output = noted
    try:
        yield
    finally:
        del core.get_output
