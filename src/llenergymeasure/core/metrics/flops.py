"""Floating-point operations of inference, as reference metadata: 2 × N × tokens.

Each token, of the input as of the output, is multiplied once with each of the N weights that take part in matrix
products: one multiplication and one addition per weight (Chowdhery et al. 2022, "PaLM", appendix B; Kaplan et al. 2020,
section 2.1). N leaves out embedding look-ups, which multiply nothing, and the experts a token is not sent to.
"""

from __future__ import annotations

from typing import Final

from llenergymeasure.core.model.parameters import ParameterCount
from llenergymeasure.domain.metrics import FlopsResult

METHOD: Final = "palm_formula"
ATTENTION_NOTE: Final = (
    "2 x N x (input + output tokens). The attention term, which grows with the sequence, is left out: it matters "
    "beyond about 2,048 tokens."
)


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
