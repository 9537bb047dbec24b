"""What a model's files tell about whether transformers will load it, before it is tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.auto import AutoHfQuantizer

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.checks import ENCODERS, Check, EngineHost
from llenergymeasure.core.model.source import ModelSource, first_line

CPU_4BIT_INPUTS: Final = 64
CPU_4BIT_OUTPUTS: Final = 32
"""Multiples that bitsandbytes' packed 4-bit kernel for AVX-512 processors wants of a layer's two sizes."""


def architecture_is_loadable(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    """The architecture must be one of transformers' language models, or the model's own code be allowed to run."""
    if host.source is None:
        return
    content = host.source.config
    family, code = content.get("model_type"), content.get("auto_map") or {}
    told_elsewhere = content.get("is_encoder_decoder") or family in ENCODERS
    if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or told_elsewhere:
        return
    if "AutoModelForCausalLM" in code:
        if not config.trust_remote_code:
            yield (
                f"trust_remote_code: {config.model} brings code of its own ({code['AutoModelForCausalLM']}), which is "
                "run only where that is allowed. Read it, then set trust_remote_code: true."
            )
    elif family is None:
        yield f"model: config.json of {config.model} names no model_type. Save the model anew with save_pretrained."
    elif family in CONFIG_MAPPING_NAMES:
        is_multimodal = any(name.startswith(("vision", "audio", "image", "speech")) for name in content)
        kind = "multimodal" if is_multimodal else repr(family)
        name = ", ".join(map(str, content.get("architectures") or (family,)))
        yield (
            f"model: {config.model} ({name}) is a {kind} model, which transformers does not load as a language model. "
            "Only language models are supported."
        )
    else:
        yield (
            f"model: {config.model} is a {family!r} model, which transformers {metadata.version('transformers')} does "
            "not know. Upgrade transformers, or use another model."
        )


def checkpoint_quantisation_is_possible(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    """What a quantised checkpoint needs (a package, a GPU) must be there: transformers' own check, made early."""
    quantisation = _mapping(host.source.config.get("quantization_config")) if host.source is not None else None
    if not quantisation:
        return
    method = quantisation.get("quant_method", "unknown")
    try:
        quantiser = AutoHfQuantizer.from_config(dict(quantisation), pre_quantized=True)
        quantiser.validate_environment(device_map="cuda:0" if host.on_gpu else "cpu", dtype=None)
    except Exception as error:  # noqa: BLE001 (each method's check raises what it likes)
        yield (
            f"model: {config.model} is quantised ({method}), and its weights cannot be used here: {first_line(error)}. "
            "Install what is missing, or use weights that are not quantised."
        )


def cpu_kernel_takes_the_shapes(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    """The 4-bit kernel that bitsandbytes has for some processors takes certain sizes only, and dies of others."""
    if host.on_gpu is not False or host.source is None:
        return
    asked = config.pytorch is not None and config.pytorch.load_in_4bit
    stored = _mapping(host.source.config.get("quantization_config")).get("load_in_4bit")
    is_usable = host.is_installed("bitsandbytes") and host.import_failure("bitsandbytes") is None
    if not ((asked or stored) and is_usable and _cpu_packs_4bit()):
        return
    odd = next(_odd_layers(host.source), None)
    if odd is not None:
        name, inputs, outputs = odd
        yield (
            f"{'pytorch.load_in_4bit' if asked else 'model'}: bitsandbytes' 4-bit kernel for this processor takes "
            f"layers of multiples of {CPU_4BIT_INPUTS} inputs and {CPU_4BIT_OUTPUTS} outputs, and {name} is "
            f"{inputs} to {outputs}. Use load_in_8bit on weights that are not quantised, or run on a GPU."
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _cpu_packs_4bit() -> bool:
    from bitsandbytes import functional  # type: ignore[import-untyped,unused-ignore]

    return bool(getattr(functional, "has_avx512bf16", lambda: False)())


def _odd_layers(source: ModelSource) -> Iterator[tuple[str, int, int]]:
    """Layers of sizes that the kernel does not take; of a model whose code is its own, none is known."""
    if source.config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(source.load(AutoConfig.from_pretrained))
    head = model.get_output_embeddings()  # stays as it is
    for name, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear) or layer is head:
            continue
        if layer.in_features % CPU_4BIT_INPUTS or layer.out_features % CPU_4BIT_OUTPUTS:
            yield name, layer.in_features, layer.out_features


MODEL_CHECKS: Final[tuple[Check, ...]] = (
    architecture_is_loadable,
    checkpoint_quantisation_is_possible,
    cpu_kernel_takes_the_shapes,
)
