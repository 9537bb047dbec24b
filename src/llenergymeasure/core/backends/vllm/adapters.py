"""An adapter for vLLM, every tensor accounted for: vLLM cuts a misfit to size without a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from safetensors import safe_open
from vllm.lora.request import LoRARequest

from llenergymeasure.config.models import LoRAConfig
from llenergymeasure.core.backends.shared import local_directory
from llenergymeasure.core.model.source import ModelSource
from llenergymeasure.exceptions import BackendError

Shape = tuple[int, ...]

_FACTOR: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<which>[AB])(?:\.\w+)?\.weight")
_SIDE: Final = {"A": 1, "B": 0}
"""The dimension of a weight (rows out, columns in) that a factor has to fit."""


def lora_request(source: ModelSource) -> LoRARequest:
    """The adapter as every request names it; its files are fetched if they are not here."""
    return LoRARequest("adapter", 1, str(local_directory(source)))


def check_adapter(lora: LoRAConfig, adapter: ModelSource, model: ModelSource) -> None:
    """Refuse an adapter that was made for other weights than those of `model`, as far as headers of files tell.

    Raises:
        BackendError: A layer has no such weight, or one of another shape.
    """
    weights = dict(_shapes(local_directory(model, "*.safetensors")))
    misfits = sorted(_misfits(dict(_shapes(local_directory(adapter))), weights)) if weights else []
    if misfits:
        raise BackendError(
            f"lora: {lora.adapter_id or lora.adapter_path} does not fit {model.location}: {len(misfits)} of its "
            f"tensors have no counterpart (first: {misfits[0]}); it was made for "
            f"{adapter.config.get('base_model_name_or_path') or 'another model'}."
        )


def _misfits(factors: Mapping[str, Shape], weights: Mapping[str, Shape]) -> Iterator[str]:
    for name, shape in factors.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            continue
        weight, side = weights.get(f"{match['module']}.weight"), _SIDE[match["which"]]
        if weight is None or weight[side] != shape[side]:
            yield name


def _shapes(directory: Path) -> Iterator[tuple[str, Shape]]:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                yield name, tuple(tensors.get_slice(name).get_shape())
