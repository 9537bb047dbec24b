"""An adapter's layers in a loaded model, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from llenergymeasure.config.models import LoRAConfig
from llenergymeasure.core.model.source import ModelSource, first_line
from llenergymeasure.exceptions import BackendError

if TYPE_CHECKING:
    from peft import PeftModel


def apply_adapter(
    model: PreTrainedModel, lora: LoRAConfig, source: ModelSource
) -> tuple[PreTrainedModel, PeftModel | None]:
    """The model with the adapter's layers in it and the adapter around it, or (`None`) with its weights merged."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    where = lora.adapter_id or lora.adapter_path
    misfit = f"lora: {where} does not fit {model.name_or_path}"
    made_for = f"it was made for {source.config.get('base_model_name_or_path') or 'another model'}."
    try:
        saved = source.load(load_peft_weights, device="cpu")
    except Exception as error:  # whatever the file's format raises
        raise BackendError(
            f"lora: the weights of {where} cannot be read ({first_line(error)}). The file is missing or damaged; "
            "get it anew."
        ) from error
    try:
        whole = _fit_vocabulary(model, saved)
        # Adapter weights stay in the experiment's precision; peft would train, and so widen, them in fp32.
        adapter = source.load(partial(PeftModel.from_pretrained, model), autocast_adapter_dtype=False)
    except Exception as error:  # shape mismatches are RuntimeErrors, absent layers ValueErrors, and so on
        raise BackendError(f"{misfit} ({first_line(error)}); {made_for}") from error
    if adapter.active_peft_config.is_prompt_learning:
        raise BackendError(
            f"lora: {where} is a {adapter.active_peft_config.peft_type.value} adapter, not a low-rank one. "
            "Adapters that lengthen the prompt are not supported."
        )
    own = set(get_peft_model_state_dict(adapter))
    odd = sorted((set(saved) ^ own) - whole)  # tensors that found no layer, or layers that found no tensor
    if odd:
        raise BackendError(f"{misfit}: {len(odd)} tensors have no counterpart (first: {odd[0]}); {made_for}")
    if lora.merge_weights:
        return adapter.merge_and_unload(), None
    return adapter.get_base_model(), adapter


def _fit_vocabulary(model: PreTrainedModel, saved: Mapping[str, torch.Tensor]) -> set[str]:
    """Give the model as many ids as an adapter's own embedding has; returns the names of whole weights it carries."""
    names = {f"base_model.model.{name}": weight for name, weight in model.state_dict(keep_vars=True).items()}
    embedding = model.get_input_embeddings().weight
    for name, weight in names.items():
        if weight is embedding and name in saved and saved[name].shape[0] != weight.shape[0]:
            model.resize_token_embeddings(saved[name].shape[0], mean_resizing=False)
            break
    return set(names).intersection(saved)
