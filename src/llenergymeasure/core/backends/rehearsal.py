"""The rehearsal: every shape of the window is met before it, so that nothing in it happens for the first time.

An engine compiles programs, records graphs and looks up kernels when it first meets a shape. The ragged last batch is
one, the longest prompt another; an engine that prepares more says so (`Specialisation`). Whether warm-up is on or off
makes no difference here: first meetings belong to no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    Specialisation,
    split_into_batches,
)

Batch = Sequence[GenerationRequest]

SHORT_OUTPUT_TOKENS: Final = 16
"""Most output tokens of a prompt ahead of the window: enough decode steps for the steady kernel mix, still short."""

MAX_MEETINGS: Final = 5
"""Most times that a shape is met: what still compiles then would go on doing so."""


def rehearsed_batches(
    requests: Sequence[GenerationRequest], batch_size: int | None, specialisation: Specialisation
) -> list[Batch]:
    """One batch of the window, that with the longest prompt, for each shape of it, in order.

    Args:
        batch_size: As the engine tells it; where it batches by itself (`None`), the batches are of so many requests as
            run at once.
    """
    largest: dict[tuple[int, int, int], Batch] = {}
    for batch in split_into_batches(requests, batch_size or specialisation.rows):
        width = prompt_width(batch)
        shape = (
            len(batch),
            width if specialisation.every_prompt_length else 0,
            max(request.max_new_tokens for request in batch) if specialisation.full_output_length else 0,
        )
        if shape not in largest or width > prompt_width(largest[shape]):
            largest[shape] = batch
    if specialisation.meetings == 0:
        return []
    if specialisation.full_output_length:
        return list(largest.values())
    return [[shortened(request) for request in batch] for batch in largest.values()]


def rehearse(batches: Sequence[Batch], generate: Callable[[Batch], GenerationOutput], meetings: int) -> None:
    """Generate for each of `batches` so many times, and again while that still compiles something."""
    pending = list(batches)
    for met in range(1, MAX_MEETINGS + 1):
        pending = [batch for batch in pending if generate(batch).compilations > 0 or met < meetings]


def prompt_width(batch: Batch) -> int:
    """Tokens of its longest prompt, to which the others are padded."""
    return max(len(request.token_ids) for request in batch)


def shortened(request: GenerationRequest) -> GenerationRequest:
    """The request with a short output."""
    return replace(
        request,
        max_new_tokens=min(request.max_new_tokens, SHORT_OUTPUT_TOKENS),
        min_new_tokens=min(request.min_new_tokens, SHORT_OUTPUT_TOKENS),
    )
