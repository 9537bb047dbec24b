"""Models of real sizes without a file of weights: made on the device that runs them, in seconds, from a seed.

What a model costs hangs on its shape and not on what it has learnt. Each matrix is drawn from a generator of the
device, seeded by the model's seed and the matrix's name, with a standard deviation that keeps its output near unit
size. Two loads on devices of one kind have the same weights; a CPU and a GPU do not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llenergymeasure.builtin_models.store import WEIGHTS_SEED
from llenergymeasure.core.model.source import ModelSource

_SETTINGS: Final = {"quantization_config": "pytorch.load_in_4bit and pytorch.load_in_8bit"}
"""Arguments of `from_pretrained` that make no sense without files, by the setting that gives them."""


def loader_of(source: ModelSource) -> Callable[..., tuple[PreTrainedModel, dict[str, Any]]]:
    """What loads the model: transformers' `from_pretrained`, or for one without files, what stands in for it."""
    return _make if WEIGHTS_SEED in source.config else AutoModelForCausalLM.from_pretrained


def _make(
    location: str,
    *,
    dtype: torch.dtype,
    device_map: str,
    trust_remote_code: bool,
    output_loading_info: bool,
    attn_implementation: str | None = None,
    **others: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Called like `from_pretrained` with loading info, of which there is none.

    Raises:
        ValueError: It was asked for something that only weights from files can have.
    """
    refused = [_SETTINGS.get(name, f"passthrough_kwargs.{name}") for name in others]
    if not device_map.startswith(("cpu", "cuda")):
        refused.append("pytorch.device_map")
    if refused:
        raise ValueError(f"weights made in place are on one device and not quantised. Remove {', '.join(refused)}.")
    config = AutoConfig.from_pretrained(location)
    device = torch.device(device_map)
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)
    _fill(model, getattr(config, WEIGHTS_SEED), device)
    return model.eval(), {"missing_keys": []}


def _fill(model: PreTrainedModel, seed: int, device: torch.device) -> None:
    generator = torch.Generator(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:  # the others scale norms, and are ones
                generator.manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
