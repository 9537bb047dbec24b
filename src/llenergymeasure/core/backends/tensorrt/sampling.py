"""A request and the decoder's settings as TensorRT-LLM's `SamplingParams`, everything said explicitly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorrt_llm import SamplingParams

from llenergymeasure.config.models import DecoderConfig
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.backends.shared import derived_seed


def sampling_parameters(
    request: GenerationRequest, decoder: DecoderConfig, eos_token_ids: Sequence[int], seed: int
) -> SamplingParams:
    """How TensorRT-LLM is asked for one text: told token by token, and with the engine's own instants."""
    return SamplingParams(
        max_tokens=request.max_new_tokens,
        detokenize=False,
        return_perf_metrics=True,
        **_ends(request, eos_token_ids),
        **_choice(decoder, derived_seed(seed, request.index)),
    )


def _ends(request: GenerationRequest, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    """What ends the text: any of the ids that end it on every engine; the id itself belongs to the output.

    Words that stop a text do so however short it is, so nothing stops one whose length is forced. A lower bound below
    the limit holds for the one id that is the engine's own end.
    """
    first = eos_token_ids[0] if eos_token_ids else 0
    bounds: dict[str, Any] = {"end_id": first, "pad_id": first, "include_stop_str_in_output": True}
    if request.min_new_tokens >= request.max_new_tokens or not eos_token_ids:
        return {**bounds, "ignore_eos": True}
    if request.min_new_tokens == 0:
        return {**bounds, "ignore_eos": True, "stop_token_ids": list(eos_token_ids)}
    return {**bounds, "min_tokens": request.min_new_tokens, "stop_token_ids": list(eos_token_ids[1:]) or None}


def _choice(decoder: DecoderConfig, seed: int) -> dict[str, Any]:
    """How each token is chosen; a temperature of 0 is not one of TensorRT-LLM's, the best one of one is."""
    if decoder.is_deterministic:
        return {"top_k": 1}
    return {
        "temperature": decoder.temperature,
        "top_k": decoder.top_k,
        "top_p": decoder.top_p,
        "min_p": decoder.min_p,
        "seed": seed,
    }
