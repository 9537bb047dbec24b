"""What PyTorch compiles and records by itself when a batch's shape is new: for which models, and when it does."""

from __future__ import annotations

from typing import Final

from transformers import PreTrainedModel

from llenergymeasure.core.backends.protocol import Specialisation

STATIC_CACHES: Final = ("static", "offloaded_static")
"""Kinds of cache that `generate` compiles for on CUDA, unless `disable_compile` is set (transformers, "KV cache")."""

GRAPH_MEETINGS: Final = 3
"""A CUDA graph is run once to warm up, recorded the second time, and replayed from the third."""


def specialisation_of(model: PreTrainedModel) -> Specialisation:
    """The shapes that a loaded model prepares something for.

    On a GPU the allocator grows to the longest text and kernels are looked up by length, so that texts in full belong
    to it; compiled code is specialised on the prompt too.
    """
    on_gpu = model.device.type == "cuda"
    if not may_compile(model):
        return Specialisation(full_output_length=on_gpu)
    return Specialisation(every_prompt_length=True, full_output_length=True, meetings=GRAPH_MEETINGS if on_gpu else 1)


def is_compiled(model: PreTrainedModel) -> bool:
    """Whether `torch.compile` was applied to the model."""
    return model._compiled_call_impl is not None


def may_compile(model: PreTrainedModel) -> bool:
    """Whether anything of the model is compiled: as asked for, by `generate`, or by its attention kernel."""
    generation = model.generation_config
    by_generate = model.device.type == "cuda" and generation.cache_implementation in STATIC_CACHES
    return (
        is_compiled(model)
        or (by_generate and not generation.disable_compile)
        or model.config._attn_implementation == "flex_attention"
    )


class CompilationCounter:
    """Counts what PyTorch compiles and records, by the notices it gives; nothing where nothing is compiled."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.count = 0
        self._is_listening = may_compile(model)
        if self._is_listening:
            from torch._dynamo.callback import callback_handler  # the import takes a second

            callback_handler.register_start_callback(self._notice)

    def stop(self) -> None:
        """Listen no longer; safe to call twice."""
        if self._is_listening:
            from torch._dynamo.callback import callback_handler

            self._is_listening = False
            callback_handler.remove_start_callback(self._notice)

    def _notice(self, *_: object) -> None:
        self.count += 1
