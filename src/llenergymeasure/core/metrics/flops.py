"""Floating-point operations of inference, as reference metadata: 2 × N × tokens.

Each token, of the input as of the output, is multiplied once with each of the N weights that take part in matrix
products: one multiplication and one addition per weight (Chowdhery et al. 2022, "PaLM", appendix B; Kaplan et al. 2020,
section 2.1). N leaves out embedding look-ups, which multiply nothing, and the experts a token is not sent to. Without a
cache each step computes the whole text anew; beams are rows of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llenergymeasure.core.backends.protocol import TokenPasses
from llenergymeasure.core.metrics.counting import TokenCounts
from llenergymeasure.core.model.parameters import ParameterCount
from llenergymeasure.domain.metrics import FlopsResult

METHOD: Final = "palm_formula"
CACHE_NOTE: Final = "2 x N x (input + output tokens)."
NO_CACHE_NOTE: Final = "2 x N x the text before each output token, since nothing is kept between steps."
ATTENTION_NOTE: Final = (
    "The attention term, which grows with the sequence, is left out: it matters beyond about 2,048 tokens."
)


def estimate_flops(
    parameters: ParameterCount, tokens: TokenCounts, precision: str, passes: TokenPasses
) -> FlopsResult | None:
    """Operations that `tokens` cost on a model of so many active parameters.

    Args:
        tokens: Those of the window; warm-up is not in it.
        passes: How often each token goes through the model.

    Returns:
        `None` where the parameters could not be counted.
    """
    if parameters.params is None:
        return None
    computed = tokens.texts_so_far if passes.recomputes_text else tokens.input_tokens + tokens.output_tokens
    return FlopsResult(
        value=2.0 * parameters.params * computed * passes.rows_per_prompt,
        method=METHOD,
        confidence="low" if passes.drafted_by is not None else parameters.confidence,
        precision=precision,
        notes=" ".join((f"N = {parameters.params:,} ({parameters.note}).", *_notes(passes))),
    )


def _notes(passes: TokenPasses) -> Iterator[str]:
    yield NO_CACHE_NOTE if passes.recomputes_text else CACHE_NOTE
    if passes.rows_per_prompt > 1:
        yield f"Each prompt is computed in {passes.rows_per_prompt} rows, which are all counted."
    if passes.drafted_by is not None:
        yield f"Tokens drafted by {passes.drafted_by} and rejected, and what drafting itself computes, are not in it."
    yield ATTENTION_NOTE
