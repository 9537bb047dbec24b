"""How many tokens a window holds, and the floating-point operations that they cost, as reference metadata.

Counts are of ids; nothing is ever tokenised again to count it. Each token, of the input as of the output, is multiplied
once with each of the N weights that take part in matrix products: one multiplication and one addition per weight
(Chowdhery et al. 2022, "PaLM", appendix B; Kaplan et al. 2020, section 2.1). N leaves out embedding look-ups, which
multiply nothing, and the experts a token is not sent to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.model.parameters import ParameterCount
from llenergymeasure.domain.metrics import FlopsResult
from llenergymeasure.exceptions import ExperimentError

METHOD: Final = "palm_formula"
ATTENTION_NOTE: Final = (
    "2 x N x (input + output tokens). The attention term, which grows with the sequence, is left out: it matters "
    "beyond about 2,048 tokens."
)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens and requests of a window: ids processed as input after truncation, ids produced with each EOS."""

    input_tokens: int
    output_tokens: int
    requests: int


def count_tokens(outputs: Sequence[RequestOutput]) -> TokenCounts:
    """Everything that `outputs` hold.

    Raises:
        ExperimentError: Not one output token; energy per token would be a division by zero.
    """
    output_tokens = sum(output.output_tokens for output in outputs)
    if output_tokens == 0:
        raise ExperimentError("the model produced no output tokens; there is nothing to relate its energy to")
    return TokenCounts(sum(output.input_tokens for output in outputs), output_tokens, requests=len(outputs))


def count_tokens_between(outputs: Sequence[RequestOutput], start_s: float, end_s: float) -> TokenCounts:
    """What was produced between two instants of the measurement clock.

    An output token counts if it was there within (start, end]; a request's input tokens count with its first output
    token, which is when their processing is known to be over; a request counts as answered with its last.

    Raises:
        ExperimentError: The engine gives no token timestamps, or nothing was produced in between.
    """
    input_tokens = output_tokens = answered = 0
    for output in outputs:
        times_s = output.token_times_s
        if times_s is None:
            raise ExperimentError(
                "a part of the generation cannot be measured: this engine, with these settings, gives no token "
                "timestamps. Remove measurement.skip_first_seconds, skip_last_seconds and full_batch_only."
            )
        output_tokens += bisect_right(times_s, end_s) - bisect_right(times_s, start_s)
        input_tokens += output.input_tokens if start_s < times_s[0] <= end_s else 0
        answered += start_s < times_s[-1] <= end_s
    if output_tokens == 0:
        raise ExperimentError(
            f"no token was produced in the {end_s - start_s:.2f} s that remain of the window after "
            "measurement.skip_first_seconds, skip_last_seconds and full_batch_only; measure for longer "
            "(n, measurement.min_duration_seconds) or skip less."
        )
    return TokenCounts(input_tokens, output_tokens, answered)


def full_batch_interval(outputs: Sequence[RequestOutput]) -> tuple[float, float]:
    """From the moment the engine's batch is full to the moment it can no longer be kept so.

    The batch is full when as many requests run at once as ever do; it can no longer be kept full once the last request
    has started and the first of those then running has ended.

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
    running = [(start_s, index + 1 - bisect_right(ends_s, start_s)) for index, start_s in enumerate(starts_s)]
    capacity = max(count for _, count in running)
    full_s = next(start_s for start_s, count in running if count == capacity)
    return full_s, ends_s[bisect_right(ends_s, starts_s[-1])]


def estimate_flops(parameters: ParameterCount, tokens: int, precision: str) -> FlopsResult | None:
    """Operations that `tokens` cost on a model of so many active parameters.

    Args:
        tokens: Input and output tokens of the window; warm-up is not in it.
        precision: Number format of the arithmetic.

    Returns:
        `None` where the parameters could not be counted.
    """
    if parameters.params is None:
        return None
    return FlopsResult(
        value=2.0 * parameters.params * tokens,
        method=METHOD,
        confidence=parameters.confidence,
        precision=precision,
        notes=f"N = {parameters.params:,} ({parameters.note}). {ATTENTION_NOTE}",
    )
