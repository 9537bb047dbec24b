"""How many tokens a window holds. Counts are of ids; nothing is ever tokenised again to count it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.metrics.step_spans import step_spans
from llenergymeasure.domain.readable import duration
from llenergymeasure.exceptions import ExperimentError


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens and requests of a window.

    Args:
        input_tokens: Ids processed as input, after truncation.
        output_tokens: Ids produced, each EOS included.
        texts_so_far: Tokens of the text before each output token, added up: what is computed where nothing is kept.
    """

    input_tokens: int
    output_tokens: int
    requests: int
    texts_so_far: int = 0


def count_tokens(outputs: Sequence[RequestOutput]) -> TokenCounts:
    """Everything that `outputs` hold.

    Raises:
        ExperimentError: Not one output token; energy per token would be a division by zero.
    """
    counts = TokenCounts(
        input_tokens=sum(output.input_tokens for output in outputs),
        output_tokens=sum(output.output_tokens for output in outputs),
        requests=len(outputs),
        texts_so_far=sum(_texts_before(output, 0, output.output_tokens) for output in outputs),
    )
    if counts.output_tokens == 0:
        raise ExperimentError("the model produced no output tokens; there is nothing to relate its energy to")
    return counts


def count_tokens_between(outputs: Sequence[RequestOutput], start_s: float, end_s: float) -> TokenCounts:
    """What was produced between two instants of the measurement clock.

    An output token counts if it was there within (start, end]; a request's input tokens count with its first output
    token, which is when their processing is known to be over; a request counts as answered with its last.

    Raises:
        ExperimentError: The engine gives no token timestamps, or nothing was produced in between.
    """
    input_tokens = output_tokens = answered = texts_so_far = 0
    for output in outputs:
        times_s = output.token_times_s
        if times_s is None:
            raise ExperimentError(
                "a part of the generation cannot be measured: this engine, with these settings, gives no token "
                "timestamps. Remove measurement.skip_first_seconds, skip_last_seconds and full_batch_only."
            )
        before, until = bisect_right(times_s, start_s), bisect_right(times_s, end_s)
        output_tokens += until - before
        texts_so_far += _texts_before(output, before, until)
        input_tokens += output.input_tokens if start_s < times_s[0] <= end_s else 0
        answered += start_s < times_s[-1] <= end_s
    if output_tokens == 0:
        raise ExperimentError(
            f"no token was produced in the {duration(end_s - start_s)} that remain of the window after "
            "measurement.skip_first_seconds, skip_last_seconds and full_batch_only; measure for longer "
            "(n, measurement.min_duration_seconds) or skip less."
        )
    return TokenCounts(input_tokens, output_tokens, answered, texts_so_far)


def _texts_before(output: RequestOutput, first: int, end: int) -> int:
    """Lengths of the text before the output tokens `first` to `end` (exclusive), added up."""
    return (end - first) * output.input_tokens + (end * (end - 1) - first * (first - 1)) // 2


def full_batch_interval(outputs: Sequence[RequestOutput], steps: StepLog | None = None) -> tuple[float, float]:
    """From the moment the engine's batch is full to the moment it can no longer be kept so.

    The batch is full when as many requests run at once as ever do: in the engine's steps where it tells them, else by
    the requests' instants, in which one that was pushed out for a while still counts. It can no longer be kept full
    once the last request has started and the first of those then running has ended.

        running     ┌──────────────┐
              ┌─────┘ full         └────┐
        ──────┘                         └───────
                    ^start_s       ^end_s

    Raises:
        ExperimentError: The engine gives no token timestamps.
    """
    if any(output.token_times_s is None for output in outputs):
        raise ExperimentError("measurement.full_batch_only needs token timestamps, which this engine does not give")
    starts_s = sorted(output.started_s for output in outputs)
    ends_s = sorted(output.token_times_s[-1] for output in outputs if output.token_times_s is not None)
    drained_s = ends_s[bisect_right(ends_s, starts_s[-1])]
    if steps is not None:
        spans = step_spans(steps, outputs)
        running = [
            (start_s, step.requests)
            for (start_s, end_s), step in zip(spans, steps, strict=True)
            if start_s < min(end_s, drained_s)
        ]
    else:
        running = [(start_s, index + 1 - bisect_right(ends_s, start_s)) for index, start_s in enumerate(starts_s)]
    capacity = max(count for _, count in running)
    return next(start_s for start_s, count in running if count == capacity), drained_s
