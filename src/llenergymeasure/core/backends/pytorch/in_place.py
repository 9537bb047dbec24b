"""Models of real sizes without a file of weights: made on the device that runs them, in seconds, from a seed.

What a model costs hangs on its shape, not on what it has learnt. Each matrix comes from a generator of the device,
seeded by model and name, scaled to keep its output near unit size: the same on every device of one kind.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llenergymeasure.builtin_models.store import WEIGHTS_SEED
from llenergymeasure.core.model.source import ModelSource

_Loaded = tuple[PreTrainedModel, dict[str, Any]]


def loader_of(source: ModelSource) -> Callable[..., _Loaded]:
    """What loads the model: transformers' `from_pretrained`, or for one without files, what stands in for it."""
    return _make if WEIGHTS_SEED in source.config else AutoModelForCausalLM.from_pretrained


def _make(location: str, *, dtype: torch.dtype, device_map: str, **arguments: Any) -> _Loaded:
    """Called like `from_pretrained` with loading info; `ValueError` for what only weights from files can have."""
    attention = {name: arguments.pop(name) for name in ("attn_implementation",) if name in arguments}
    refused = sorted(arguments.keys() - {"trust_remote_code", "output_loading_info"})
    if refused or not device_map.startswith(("cpu", "cuda")):
        what = ", ".join(refused) or "pytorch.device_map"
        raise ValueError(f"its weights are made in place, on one device and not quantised; it cannot take {what}")
    config, device = AutoConfig.from_pretrained(location), torch.device(device_map)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)
    generator = torch.Generator(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:  # the others scale norms, and are ones
                generator.manual_seed(zlib.crc32(f"{getattr(config, WEIGHTS_SEED)}/{name}".encode()))
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return model.eval(), {"missing_keys": [], "unexpected_keys": []}
