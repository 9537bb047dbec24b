"""From a config to a model in memory: weights, quantisation, adapter, drafter, compilation, all of them checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llenergymeasure.config.backend_configs import PyTorchConfig
from llenergymeasure.config.models import ExperimentConfig, LoRAConfig
from llenergymeasure.core.backends.pytorch.generation import Decoding, decoder_parameters
from llenergymeasure.core.backends.pytorch.placement import Placement
from llenergymeasure.core.model.parameters import context_length
from llenergymeasure.core.model.source import ModelSource, find_adapter, find_model, first_line
from llenergymeasure.exceptions import BackendError

if TYPE_CHECKING:
    from peft import PeftModel

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

OWNED_ARGUMENTS: Final[Mapping[str, str]] = {
    "dtype": "precision",
    "torch_dtype": "precision",
    "device_map": "pytorch.device and pytorch.device_map",
    "config": "model",
    "state_dict": "model",
    "cache_dir": "output.model_cache_dir of the user config",
    "output_loading_info": "nothing (it is always on)",
}
"""Arguments of `from_pretrained` that passthrough_kwargs may not set, and what sets them instead."""

GENERATION_FIELDS: Final = (
    "use_cache",
    "cache_implementation",
    "num_beams",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
)
"""Fields of the pytorch section that are fields of `GenerationConfig` under the same name."""

DRAFTING_FIELDS: Final = ("num_assistant_tokens", "num_assistant_tokens_schedule")
"""Likewise, of the assistant's `GenerationConfig`."""

QUANTISATION_FIELDS: Final = (
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
)
"""Likewise, of `BitsAndBytesConfig`."""


@dataclass(frozen=True, slots=True)
class Assistant:
    """A smaller model that drafts tokens, with the tokenizer it thinks in."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class LoadedParts:
    """A model in memory and what came with it.

    Args:
        model: The model that generates; adapter layers, if any, are inside it.
        adapter: The adapter around it; `None` without one, or once it is merged.
        assistant: What drafts tokens for it.
    """

    source: ModelSource
    model: PreTrainedModel
    adapter: PeftModel | None
    assistant: Assistant | None
    decoding: Decoding

    @property
    def is_compiled(self) -> bool:
        """Whether `torch.compile` was applied to the model."""
        return self.model._compiled_call_impl is not None


def section_of(config: ExperimentConfig) -> PyTorchConfig:
    """The experiment's pytorch section; one of defaults where it is left out."""
    return config.pytorch or PyTorchConfig()


def load_parts(
    config: ExperimentConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    placement: Placement,
    cache_home: Path | None,
) -> LoadedParts:
    """Load everything that `config` asks for.

    Raises:
        BackendError: Something cannot be had as asked.
    """
    section = section_of(config)
    model = load_weights(config, source, placement)
    adapter = None
    if config.lora is not None:
        model, adapter = apply_adapter(model, config.lora, find_adapter(config.lora, cache_home))
    assistant = load_assistant(config, placement, cache_home)
    decoding = build_decoding(config, model, assistant, tokenizer)
    model.generation_config = decoding.generation_config()  # the checkpoint's own file must not add to it
    if section.torch_compile:
        model.compile(**compile_arguments(section))
    return LoadedParts(source, model, adapter, assistant, decoding)


def load_weights(config: ExperimentConfig, source: ModelSource, placement: Placement) -> PreTrainedModel:
    """`from_pretrained` with the settings of `config`; every weight must come from the checkpoint.

    Raises:
        BackendError: It fails, does not fit, or leaves weights that nothing filled.
    """
    check_passthrough(config)
    try:
        model, report = source.patiently(AutoModelForCausalLM.from_pretrained)(
            source.location,
            **source.loader_arguments,
            **loader_arguments(config, placement),
            output_loading_info=True,
        )
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise BackendError(
            f"model: {config.model} does not fit into the memory of {placement.device_map} as {config.precision} "
            f"({first_line(error)}). Use a smaller model, a lower precision, pytorch.load_in_4bit, or more GPUs with "
            "pytorch.device_map: auto."
        ) from error
    except Exception as error:  # loaders of a hundred architectures raise whatever they like
        hint = _damage_hint(error, source) + _passthrough_hint(config)
        raise BackendError(f"model: {config.model} cannot be loaded: {first_line(error)}{hint}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise BackendError(
            f"model: {config.model}'s checkpoint lacks {len(missing)} weights (first: {missing[0]}), which would be "
            "random numbers. It is incomplete, or of another architecture than its config.json says."
        )
    _refuse_offloading(model, placement)
    return model


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
    misfit = f"lora: {where} does not fit {model.name_or_path}"
    made_for = f"it was made for {source.config.get('base_model_name_or_path') or 'another model'}."
    try:
        # Adapter weights stay in the experiment's precision; peft would train, and so widen, them in fp32.
        adapter = source.patiently(PeftModel.from_pretrained)(
            model, source.location, autocast_adapter_dtype=False, **source.loader_arguments
        )
    except Exception as error:  # shape mismatches are RuntimeErrors, absent layers ValueErrors, and so on
        raise BackendError(f"{misfit} ({first_line(error)}); {made_for}") from error
    if adapter.active_peft_config.is_prompt_learning:
        raise BackendError(
            f"lora: {where} is a {adapter.active_peft_config.peft_type.value} adapter, not a low-rank one. "
            "Adapters that lengthen the prompt are not supported."
        )
    odd = _tensors_without_counterpart(adapter, source)
    if odd:
        raise BackendError(f"{misfit}: {len(odd)} tensors have no counterpart (first: {odd[0]}); {made_for}")
    if lora.merge_weights:
        return adapter.merge_and_unload(), None
    return adapter.get_base_model(), adapter


def load_assistant(config: ExperimentConfig, placement: Placement, cache_home: Path | None) -> Assistant | None:
    """The model `pytorch.assistant_model` names, in the experiment's precision, where the main model begins.

    Raises:
        BackendError: It cannot be had.
    """
    section = section_of(config)
    if section.assistant_model is None:
        return None
    source = find_model(section.assistant_model, None, cache_home=cache_home, what="pytorch.assistant_model")
    try:
        model = source.patiently(AutoModelForCausalLM.from_pretrained)(
            source.location,
            dtype=DTYPES[config.precision],
            device_map="cuda:0" if placement.on_gpu else "cpu",
            trust_remote_code=config.trust_remote_code,
            **source.loader_arguments,
        )
        tokenizer = source.patiently(AutoTokenizer.from_pretrained)(
            source.location, trust_remote_code=config.trust_remote_code, **source.loader_arguments
        )
    except Exception as error:  # see load_weights
        raise BackendError(
            f"pytorch.assistant_model: {section.assistant_model} cannot be loaded: {first_line(error)}"
        ) from error
    model.generation_config = GenerationConfig(**_given(section, *DRAFTING_FIELDS))
    return Assistant(model, tokenizer)


def check_passthrough(config: ExperimentConfig) -> None:
    """Refuse `passthrough_kwargs` that would set what a field of the config sets.

    Raises:
        BackendError: One of them does.
    """
    for key in config.passthrough_kwargs or {}:
        if key in OWNED_ARGUMENTS:
            raise BackendError(f"passthrough_kwargs.{key}: set by {OWNED_ARGUMENTS[key]}. Remove it.")


def loader_arguments(config: ExperimentConfig, placement: Placement) -> dict[str, Any]:
    """What `from_pretrained` gets beside the model's place on disk."""
    section = section_of(config)
    arguments: dict[str, Any] = {
        "dtype": DTYPES[config.precision],
        "device_map": placement.device_map,
        "trust_remote_code": config.trust_remote_code,
    }
    arguments |= _given(section, "attn_implementation")
    if section.loading_bits is not None:
        arguments["quantization_config"] = BitsAndBytesConfig(**_given(section, *QUANTISATION_FIELDS))
    return {**arguments, **(config.passthrough_kwargs or {})}


def compile_arguments(section: PyTorchConfig) -> dict[str, Any]:
    """Keyword arguments of `torch.compile`."""
    chosen = _given(section, "torch_compile_mode", "torch_compile_backend", "torch_compile_dynamic")
    return {name.removeprefix("torch_compile_"): value for name, value in chosen.items()}


def build_decoding(
    config: ExperimentConfig,
    model: PreTrainedModel,
    assistant: Assistant | None,
    tokenizer: PreTrainedTokenizerBase,
) -> Decoding:
    """How `config` wants the loaded model to generate."""
    section = section_of(config)
    parameters = decoder_parameters(config.decoder) | _given(section, *GENERATION_FIELDS)
    if section.torch_compile is not None:
        parameters["disable_compile"] = True  # generate's own choice; what was asked for is compiled here, or nothing
    if section.cache_implementation in ("static", "offloaded_static"):
        # One size for all batches: a cache made to measure for each would mean a compilation for each.
        parameters["max_cache_len"] = config.max_input_tokens + config.max_output_tokens
    eos_token_ids = _eos_token_ids(model, tokenizer)
    pad_token_id = next(
        (token for token in (model.generation_config.pad_token_id, tokenizer.pad_token_id) if token is not None),
        eos_token_ids[0] if eos_token_ids else 0,
    )
    return Decoding(
        parameters=parameters,
        eos_token_ids=eos_token_ids,
        pad_token_id=pad_token_id,
        context_length=context_length(model.config.to_dict()),
        vocab_size=model.get_input_embeddings().weight.shape[0],
        generate_arguments=_drafting_arguments(model, assistant, tokenizer),
    )


def _given(section: PyTorchConfig, *names: str) -> dict[str, Any]:
    """Those of the fields that are set: the engine keeps its own defaults for the others."""
    return {name: value for name in names if (value := getattr(section, name)) is not None}


def _refuse_offloading(model: PreTrainedModel, placement: Placement) -> None:
    places = list(getattr(model, "hf_device_map", {}).values())
    elsewhere = [place for place in places if str(place) in ("cpu", "disk")]
    if placement.on_gpu and elsewhere:
        raise BackendError(
            f"pytorch.device_map: {placement.device_map!r} would keep {len(elsewhere)} of {len(places)} parts of the "
            "model outside the GPUs, whose energy the result would then miss. Use more GPUs, a smaller model, or "
            "pytorch.load_in_4bit."
        )


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a text: what the checkpoint says about generation, else what its tokenizer says."""
    for found in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        if found is not None:
            return tuple(found) if isinstance(found, list | tuple) else (int(found),)
    return ()


def _drafting_arguments(
    model: PreTrainedModel, assistant: Assistant | None, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    if assistant is None:
        return {}
    arguments: dict[str, Any] = {"assistant_model": assistant.model}
    if assistant.model.config.get_text_config().vocab_size != model.config.get_text_config().vocab_size:
        arguments |= {"tokenizer": tokenizer, "assistant_tokenizer": assistant.tokenizer}
    return arguments


def _damage_hint(error: Exception, source: ModelSource) -> str:
    if type(error).__name__ not in ("SafetensorError", "UnpicklingError"):
        return ""
    where = source.location if source.revision is None else "the Hub's cache"
    return f". A file of its weights in {where} is damaged: delete it, and fetch or save it anew."


def _passthrough_hint(config: ExperimentConfig) -> str:
    if not config.passthrough_kwargs:
        return ""
    return f" (passthrough_kwargs sent along: {', '.join(sorted(config.passthrough_kwargs))})"


def _tensors_without_counterpart(adapter: PeftModel, source: ModelSource) -> list[str]:
    """Tensors of the adapter that found no layer, and adapter layers that found no tensor."""
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    saved = set(load_peft_weights(source.location, device="cpu", **source.loader_arguments))
    return sorted(saved ^ set(get_peft_model_state_dict(adapter)))
