"""From a config to a model in memory, all checked; and back: what was really loaded, asked of the model itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llenergymeasure.config.backend_configs import PyTorchConfig
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import LoadedModel, TokenPasses
from llenergymeasure.core.backends.pytorch.adapters import apply_adapter
from llenergymeasure.core.backends.pytorch.compiling import STATIC_CACHES, is_compiled, specialisation_of
from llenergymeasure.core.backends.pytorch.generation import Decoding, decoder_parameters
from llenergymeasure.core.backends.pytorch.in_place import loader_of
from llenergymeasure.core.backends.pytorch.preflight import Placement, check_passthrough, section_of
from llenergymeasure.core.model.context import context_length
from llenergymeasure.core.model.parameters import count_loaded
from llenergymeasure.core.model.source import ModelSource, find_adapter, find_model, first_line
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import BackendError

if TYPE_CHECKING:
    from peft import PeftModel

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

GENERATION_FIELDS: Final = (
    "use_cache",
    "cache_implementation",
    "num_beams",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
)
"""Fields of the pytorch section that are fields of `GenerationConfig` under the same name."""

GENERATION_DEFAULTS: Final = {"use_cache": True, "cache_implementation": "dynamic", "num_beams": 1}
"""What transformers does where one of them is `None`."""

MAX_NAMES: Final = 3
"""Most names of weights that an error lists."""

_CONSTANT: Final = re.compile(
    r"(?:inv_freq|position_ids|masked_bias|attn(?:\.attention)?\.bias|attn\.embed_positions)$"
)
"""Masks and position tables that older releases saved with the weights, and newer ones compute."""

BATCH_DEPENDENT: Final = frozenset({"rwkv"})
"""Families whose rows are not independent of each other in transformers: states of one row reach into the others."""

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
class LoadedParts:
    """A model in memory, with adapter layers inside it; `adapter` is what is around it, unless that was merged."""

    source: ModelSource
    model: PreTrainedModel
    adapter: PeftModel | None
    decoding: Decoding


def load_parts(
    config: ExperimentConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    placement: Placement,
    cache_home: Path | None,
) -> LoadedParts:
    """Load everything that `config` asks for, or raise `BackendError`."""
    section = section_of(config)
    model, adapter = _load_weights(config, source, placement), None
    if config.lora is not None:
        model, adapter = apply_adapter(model, config.lora, find_adapter(config.lora, cache_home))
    drafting = _load_assistant(config, model, tokenizer, placement, cache_home)
    decoding = _build_decoding(config, model, tokenizer, drafting)
    model.generation_config = decoding.generation_config()  # the checkpoint's own file must not add to it
    if section.torch_compile:
        model.compile(**compile_arguments(section))
    return LoadedParts(source, model, adapter, decoding)


def loader_arguments(config: ExperimentConfig, placement: Placement) -> dict[str, Any]:
    """What `from_pretrained` gets beside the model's place on disk."""
    section = section_of(config)
    arguments: dict[str, Any] = {
        "dtype": DTYPES[config.precision],
        "device_map": placement.device_map,
        "trust_remote_code": config.trust_remote_code,
        **_given(section, "attn_implementation"),
    }
    if section.loading_bits is not None:
        arguments["quantization_config"] = BitsAndBytesConfig(**_given(section, *QUANTISATION_FIELDS))
    return {**arguments, **(config.passthrough_kwargs or {})}


def compile_arguments(section: PyTorchConfig) -> dict[str, Any]:
    """Keyword arguments of `torch.compile`."""
    chosen = _given(section, "torch_compile_mode", "torch_compile_backend", "torch_compile_dynamic")
    return {name.removeprefix("torch_compile_"): value for name, value in chosen.items()}


def _given(section: PyTorchConfig, *names: str) -> dict[str, Any]:
    """Those of the fields that are set: the engine keeps its own defaults for the others."""
    return {name: value for name in names if (value := getattr(section, name)) is not None}


def _load_weights(config: ExperimentConfig, source: ModelSource, placement: Placement) -> PreTrainedModel:
    """`from_pretrained` with the settings of `config`; every weight must come from the checkpoint."""
    check_passthrough(config)
    try:
        model, report = source.load(
            loader_of(source),
            **_without_bad_padding(source.config),
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
        raise BackendError(
            f"model: {config.model} cannot be loaded: {first_line(error)}{_hint(error, source, config)}"
        ) from error
    _check_completeness(report, f"model: {config.model}")
    _refuse_offloading(model, placement)
    return model


def _without_bad_padding(content: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that take a padding id outside the vocabulary away: an embedding refuses to be made with one."""
    pad, vocabulary = content.get("pad_token_id"), content.get("vocab_size")
    bad = isinstance(pad, int) and (pad < 0 or (isinstance(vocabulary, int) and pad >= vocabulary))
    return {"pad_token_id": None} if bad else {}


def _check_completeness(report: Mapping[str, Any], what: str) -> None:
    """Refuse a checkpoint whose weights and the model made from its config are not the same set (`BackendError`)."""
    missing = sorted(report["missing_keys"])
    unused = sorted(name for name in report["unexpected_keys"] if _CONSTANT.search(name) is None)
    if missing:
        raise BackendError(
            f"{what}'s checkpoint lacks {len(missing)} weights (first: {missing[0]}), which would be random numbers. "
            "It is incomplete, or of another architecture than its config.json says."
        )
    if unused:
        shown = ", ".join(unused[:MAX_NAMES]) + (", …" if len(unused) > MAX_NAMES else "")
        raise BackendError(
            f"{what}'s checkpoint holds {len(unused)} weights that the model of its config.json does not use "
            f"({shown}): another model than the named one would be measured. Correct config.json, e.g. its number of "
            "layers, or save the model anew."
        )


def _load_assistant(
    config: ExperimentConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    placement: Placement,
    cache_home: Path | None,
) -> dict[str, Any]:
    """Arguments with which `generate` drafts by `pytorch.assistant_model`, loaded where the main model begins."""
    section = section_of(config)
    if section.assistant_model is None:
        return {}
    source = find_model(section.assistant_model, None, cache_home=cache_home, what="pytorch.assistant_model")
    try:
        assistant, report = source.load(
            loader_of(source),
            **_without_bad_padding(source.config),
            output_loading_info=True,
            dtype=DTYPES[config.precision],
            device_map="cuda:0" if placement.on_gpu else "cpu",
            trust_remote_code=config.trust_remote_code,
        )
        its_tokenizer = source.load(AutoTokenizer.from_pretrained, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # as for the model itself
        raise BackendError(
            f"pytorch.assistant_model: {section.assistant_model} cannot be loaded: {first_line(error)}"
        ) from error
    _check_completeness(report, f"pytorch.assistant_model: {section.assistant_model}")
    assistant.generation_config = GenerationConfig(**_given(section, *DRAFTING_FIELDS))
    arguments: dict[str, Any] = {"assistant_model": assistant}
    if assistant.config.get_text_config().vocab_size != model.config.get_text_config().vocab_size:
        arguments |= {"tokenizer": tokenizer, "assistant_tokenizer": its_tokenizer}
    return arguments


def _build_decoding(
    config: ExperimentConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, drafting: dict[str, Any]
) -> Decoding:
    section = section_of(config)
    parameters = decoder_parameters(config.decoder) | _given(section, *GENERATION_FIELDS)
    if section.torch_compile is not None:
        parameters["disable_compile"] = True  # generate's own choice; what was asked for is compiled here, or nothing
    if section.cache_implementation in STATIC_CACHES:
        # One size for all batches: a cache made to measure for each would mean a compilation for each.
        parameters["max_cache_len"] = config.max_input_tokens + config.max_output_tokens
    vocab_size = model.get_input_embeddings().weight.shape[0]
    eos_token_ids = tuple(token for token in _eos_token_ids(model, tokenizer) if 0 <= token < vocab_size)
    pads = (model.generation_config.pad_token_id, tokenizer.pad_token_id, *eos_token_ids, 0)
    pad_token_id = next(token for token in pads if token is not None and 0 <= token < vocab_size)  # masked: any will do
    return Decoding(
        parameters=parameters,
        eos_token_ids=eos_token_ids,
        pad_token_id=pad_token_id,
        context_length=context_length(model.config.to_dict()),
        vocab_size=vocab_size,
        generate_arguments=drafting,
    )


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


def _hint(error: Exception, source: ModelSource, config: ExperimentConfig) -> str:
    """What may be behind a failure to load: damaged files, arguments that the model does not take."""
    hint = ""
    if type(error).__name__ in ("SafetensorError", "UnpicklingError"):
        where = source.location if source.is_here else "the Hub's cache"
        hint = f". A file of its weights in {where} is damaged: delete it, and fetch or save it anew."
    if config.passthrough_kwargs:
        hint += f" (passthrough_kwargs sent along: {', '.join(sorted(config.passthrough_kwargs))})"
    return hint


def gpu_indices(tensors: Iterable[torch.Tensor]) -> list[int]:
    """The GPUs that hold `tensors`, by CUDA's index."""
    return sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})


def describe_model(parts: LoadedParts, batch_size: int) -> LoadedModel:
    """Read everything back from `parts`, which are asked for `batch_size` prompts at a time."""
    model = parts.model
    gpus = gpu_indices(model.parameters())
    return LoadedModel(
        settings=dict(_settings(parts, batch_size)),
        revision=parts.source.revision,
        parameters=count_loaded(model),
        passes=_passes(parts.decoding),
        context_length=parts.decoding.context_length,
        device_names=tuple(torch.cuda.get_device_name(index) for index in gpus) if gpus else ("CPU",),
        specialisation=specialisation_of(parts.model),
        warnings=tuple(_warnings(model, batch_size)),
    )


def _warnings(model: PreTrainedModel, batch_size: int) -> Iterator[MeasurementWarning]:
    family = model.config.model_type
    if family in BATCH_DEPENDENT and batch_size > 1:
        yield MeasurementWarning(
            WarningCode.BATCH_CHANGES_TEXTS,
            f"transformers' {family} gives other texts in a batch of {batch_size} than alone, and so other lengths "
            "where texts end by themselves; use pytorch.batch_size: 1, or compare runs of one batch size only",
        )


def _passes(decoding: Decoding) -> TokenPasses:
    assistant = decoding.generate_arguments.get("assistant_model")
    looks_up = decoding.parameters.get("prompt_lookup_num_tokens") is not None
    return TokenPasses(
        rows_per_prompt=decoding.num_beams,
        recomputes_text=decoding.parameters.get("use_cache") is False,
        drafted_by=assistant.name_or_path if assistant is not None else "prompt lookup" if looks_up else None,
    )


def _settings(parts: LoadedParts, batch_size: int) -> Iterator[tuple[str, Any]]:
    model = parts.model
    yield "precision", next((name for name, dtype in DTYPES.items() if dtype is model.dtype), str(model.dtype))
    yield "pytorch.batch_size", batch_size
    yield "architecture", type(model).__name__
    yield "pytorch.device", model.device.type
    device_map = getattr(model, "hf_device_map", {})
    if len(set(device_map.values())) > 1:
        yield "pytorch.device_map", {name: str(place) for name, place in device_map.items()}
    yield "pytorch.attn_implementation", model.config._attn_implementation
    yield "pytorch.torch_compile", is_compiled(parts.model)
    if model.device.type == "cuda" and model.dtype is torch.float32:
        yield "pytorch.allow_tf32", torch.get_float32_matmul_precision() != "highest"
    yield from _generation_settings(model.generation_config)
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantisation = quantizer.quantization_config.to_dict()
        yield "quantization", quantisation.get("quant_method")
        yield from ((f"pytorch.{name}", quantisation[name]) for name in QUANTISATION_FIELDS if name in quantisation)
    if parts.adapter is not None:
        adapter = parts.adapter.active_peft_config
        yield "lora.type", adapter.peft_type.value
        yield "lora.rank", getattr(adapter, "r", None)
        yield "lora.alpha", getattr(adapter, "lora_alpha", None)
        yield "lora.target_modules", sorted(adapter.target_modules or ())
    if (assistant := parts.decoding.generate_arguments.get("assistant_model")) is not None:
        yield "pytorch.assistant_model", assistant.name_or_path
        yield from _set_fields("pytorch", assistant.generation_config, *DRAFTING_FIELDS)


def _generation_settings(generation: GenerationConfig) -> Iterator[tuple[str, Any]]:
    sampling = ("temperature", "top_k", "top_p", "min_p") if generation.do_sample else ()
    yield from _set_fields("decoder", generation, "do_sample", *sampling, "repetition_penalty")
    yield from ((f"pytorch.{name}", value) for name, value in GENERATION_DEFAULTS.items())
    yield from _set_fields("pytorch", generation, *GENERATION_FIELDS)
    yield "generation.eos_token_id", generation.eos_token_id
    yield "generation.pad_token_id", generation.pad_token_id


def _set_fields(section: str, generation: GenerationConfig, *names: str) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = getattr(generation, name, None)
        if value is not None:
            yield f"{section}.{name}", value
