"""A request and the decoder's settings as vLLM's `SamplingParams`, everything said explicitly."""

from __future__ import annotations

from collections.abc import Sequence

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from llenergymeasure.config.models import DecoderConfig
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.backends.shared import derived_seed


def sampling_parameters(
    request: GenerationRequest, decoder: DecoderConfig, eos_token_ids: Sequence[int], seed: int
) -> SamplingParams:
    """How vLLM is asked for one text.

    The ids that end a text are those of every engine, so vLLM's own idea of them is switched off. A sampled text has a
    generator of its own: neither what ran before nor the other texts of the batch change it.
    """
    lengths = {"max_tokens": request.max_new_tokens, "min_tokens": request.min_new_tokens}
    ends = {"ignore_eos": True, "stop_token_ids": list(eos_token_ids)}
    form = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
    penalty = {"repetition_penalty": decoder.repetition_penalty}
    if decoder.is_deterministic:
        return SamplingParams(temperature=0.0, **lengths, **ends, **form, **penalty)
    return SamplingParams(
        temperature=decoder.temperature,
        top_k=decoder.top_k,
        top_p=decoder.top_p,
        min_p=decoder.min_p or 0.0,
        seed=derived_seed(seed, request.index),
        **lengths,
        **ends,
        **form,
        **penalty,
    )
