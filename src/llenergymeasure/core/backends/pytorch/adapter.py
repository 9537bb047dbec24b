"""Low-rank adapters on a loaded model, kept beside its weights or merged into them (peft)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from llenergymeasure.config.models import LoRAConfig
from llenergymeasure.core.model.hub_errors import first_line
from llenergymeasure.core.model.source import ADAPTER_FILE, ModelSource, find_directory, find_model
from llenergymeasure.exceptions import BackendError

if TYPE_CHECKING:
    from peft import PeftModel


def find_adapter(lora: LoRAConfig, cache_home: Path | None) -> ModelSource:
    """Where the adapter's files are.

    Raises:
        BackendError: See `find_model`.
    """
    if lora.adapter_path is not None:
        return find_directory(Path(lora.adapter_path), "lora.adapter_path", ADAPTER_FILE)
    return find_model(lora.adapter_id or "", None, cache_home=cache_home, what="lora.adapter_id", filename=ADAPTER_FILE)


def apply_adapter(
    model: PreTrainedModel, lora: LoRAConfig, source: ModelSource
) -> tuple[PreTrainedModel, PeftModel | None]:
    """Put the adapter's layers into `model`, or merge its weights into the model's.

    Returns:
        The model to generate with, and the adapter around it (`None` once merged).

    Raises:
        BackendError: The adapter was made for another model, or is not of a kind that lives in the model's layers.
    """
    from peft import PeftModel

    where = lora.adapter_id or lora.adapter_path
    try:
        # Adapter weights stay in the experiment's precision; peft would train, and so widen, them in fp32.
        adapter = source.patiently(PeftModel.from_pretrained)(
            model, source.location, autocast_adapter_dtype=False, **source.loader_arguments
        )
    except Exception as error:  # shape mismatches are RuntimeErrors, absent layers ValueErrors, and so on
        made_for = source.config.get("base_model_name_or_path") or "another model"
        raise BackendError(
            f"lora: {where} does not fit {model.name_or_path} ({first_line(error)}); it was made for {made_for}."
        ) from error
    if adapter.active_peft_config.is_prompt_learning:
        raise BackendError(
            f"lora: {where} is a {adapter.active_peft_config.peft_type.value} adapter, not a low-rank one. "
            "Adapters that lengthen the prompt are not supported."
        )
    _check_adapter_is_complete(adapter, source, str(where), model.name_or_path)
    if lora.merge_weights:
        return adapter.merge_and_unload(), None
    return adapter.get_base_model(), adapter


def _check_adapter_is_complete(adapter: PeftModel, source: ModelSource, where: str, model: str) -> None:
    """Every tensor of the adapter must have found its layer, and every adapter layer its tensor."""
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    saved = set(load_peft_weights(source.location, device="cpu", **source.loader_arguments))
    loaded = set(get_peft_model_state_dict(adapter))
    if saved != loaded:
        odd = sorted(saved ^ loaded)
        made_for = source.config.get("base_model_name_or_path") or "another model"
        raise BackendError(
            f"lora: {where} does not fit {model}: {len(odd)} tensors have no counterpart (first: {odd[0]}); "
            f"it was made for {made_for}."
        )
