"""From a config to the arguments of TensorRT-LLM's `LLM`, of both generations; and back, asked of the engine itself.

The PyTorch-based engine runs the checkpoint as it is. The other one, up to 1.2, runs what was built from it ahead; it
is taken where a setting needs it, and refused where the installed version no longer has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import tensorrt_llm
from tensorrt_llm import llmapi

from llenergymeasure.config.backend_configs import TensorRTConfig, TensorRTSpeculativeConfig
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.exceptions import BackendError

DTYPES: Final = {"fp16": "float16", "bf16": "bfloat16"}

LAST_WITH_BUILDER: Final = "1.2"
"""Last minor version that builds engines."""

NEED_A_BUILD: Final = ("max_input_len", "quantization", "engine_path", "batching_type")
"""Fields that only an engine has which was built ahead."""

NEED_PYTORCH: Final = (
    "attn_backend",
    "cuda_graph",
    "cuda_graph_max_batch_size",
    "cuda_graph_enable_padding",
    "torch_compile",
    "disable_overlap_scheduler",
    "speculative_config",
    "kv_cache_config.dtype",
    "kv_cache_config.tokens_per_block",
)
"""Fields that only the PyTorch-based engine has."""

OWNED_ARGUMENTS: Final[Mapping[str, str]] = {
    "model": "model",
    "tokenizer": "model",
    "skip_tokenizer_init": "nothing (texts are never made)",
    "revision": "revision",
    "tokenizer_revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "backend": "the settings that need one engine or the other",
    "build_config": "max_batch_size, max_num_tokens, max_seq_len and max_input_len",
    "quant_config": "tensorrt.quantization",
    "enable_build_cache": "nothing (built engines are kept by this package)",
    "return_perf_metrics": "nothing (every request is timed)",
    "stream_interval": "nothing (every token is timed)",
    "lora_config": "nothing (merge the adapter into the weights)",
    "enable_lora": "nothing (merge the adapter into the weights)",
    "tensor_parallel_size": "tensorrt.tp_size",
    "pipeline_parallel_size": "tensorrt.pp_size",
    "context_parallel_size": "nothing (meters follow tensorrt.tp_size × pp_size GPUs)",
}
"""Arguments of `LLM` that passthrough_kwargs may not set, and what sets them instead."""

ALGORITHMS: Final = {"int8_sq": "W8A8_SQ_PER_CHANNEL", "int4_awq": "W4A16_AWQ", "fp8": "FP8"}
"""Names in `QuantAlgo` of what `tensorrt.quantization` says."""

_SAME: Final[Mapping[str, str]] = {
    "max_batch_size": "max_batch_size",
    "max_num_tokens": "max_num_tokens",
    "max_seq_len": "max_seq_len",
    "max_input_len": "max_input_len",
    "tp_size": "tensor_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "moe_expert_parallel_size": "moe_expert_parallel_size",
    "kv_cache_config": "kv_cache_config",
    "enable_chunked_prefill": "enable_chunked_prefill",
    "batching_type": "batching_type",
    "attn_backend": "attn_backend",
    "disable_overlap_scheduler": "disable_overlap_scheduler",
}
"""Fields that are an argument by themselves."""

_OF_A_BUILD: Final = ("max_batch_size", "max_num_tokens", "max_seq_len", "max_input_len")
_OF_THE_MAPPING: Final = ("tp_size", "pp_size", "moe_expert_parallel_size")

SEEDED_SAMPLER: Final = "TRTLLMSampler"
"""The one of the PyTorch-based engine's samplers that has a seed for each request, and `min_p`."""


def section_of(config: ExperimentConfig) -> TensorRTConfig:
    """The experiment's tensorrt section; one of defaults where it is left out."""
    return config.tensorrt or TensorRTConfig()


def given_fields(section: TensorRTConfig) -> frozenset[str]:
    """Paths below `tensorrt` of what was set."""
    dumped = section.model_dump(exclude_none=True)
    nested = {f"{name}.{inner}" for name, value in dumped.items() if isinstance(value, dict) for inner in value}
    return frozenset(nested.union(dumped))


def needs_build(config: ExperimentConfig) -> bool:
    """Whether a setting asks for the engine that is built ahead."""
    return not given_fields(section_of(config)).isdisjoint(NEED_A_BUILD)


def can_build() -> bool:
    """Whether the installed version builds engines."""
    return find_spec("tensorrt_llm._tensorrt_engine") is not None


def engine_class(config: ExperimentConfig) -> type[Any]:
    """The `LLM` that runs it."""
    if not needs_build(config):
        return tensorrt_llm.LLM  # type: ignore[no-any-return]
    from tensorrt_llm._tensorrt_engine import LLM

    return LLM  # type: ignore[no-any-return]


def known_arguments(config: ExperimentConfig) -> frozenset[str]:
    """What the installed `LLM` of that kind takes by keyword."""
    arguments = llmapi.TrtLlmArgs if needs_build(config) else llmapi.TorchLlmArgs
    return frozenset(arguments.model_fields)


NESTED: Final = {"kv_cache_config": "KvCacheConfig", "cuda_graph_config": "CudaGraphConfig"}
"""Arguments that have fields themselves, and their classes in `tensorrt_llm.llmapi`."""


def unknown_fields(arguments: Mapping[str, Any]) -> list[str]:
    """Paths below those of `arguments` that have fields, as far as the installed version lacks them."""
    return [
        f"{name}.{inner}"
        for name, kind in NESTED.items()
        for inner in arguments.get(name) or {}
        if inner not in getattr(llmapi, kind).model_fields
    ]


def has_salts(llm: type[Any]) -> bool:
    """Whether cached blocks can be kept apart by a salt (1.1 and later)."""
    from inspect import signature

    return "cache_salt" in signature(llm.generate_async).parameters


def cuts_prompts(arguments: Any) -> bool | None:
    """Whether the engine may compute a prompt in pieces; `None`: a step is not told by the tokens it gave.

    One with drafts computes more than it gives, and of several stages each is in another step.

    Args:
        arguments: The loaded `LLM`'s `args`.
    """
    if getattr(arguments, "speculative_config", None) is not None or arguments.pipeline_parallel_size > 1:
        return None
    return bool(arguments.enable_chunked_prefill)


def run_arguments(config: ExperimentConfig, model: Path) -> dict[str, Any]:
    """Keyword arguments of `LLM` to generate with: what was set, and what this package needs.

    Args:
        model: Directory of the checkpoint, or of the engine that was built from it.
    """
    return {**own_arguments(config, model), **(config.passthrough_kwargs or {})}


def own_arguments(config: ExperimentConfig, model: Path) -> dict[str, Any]:
    """The same without what is passed through."""
    section = section_of(config)
    built = needs_build(config)
    dumped = section.model_dump(exclude_none=True)
    arguments: dict[str, Any] = {
        **_common(config, model),
        **{_SAME[name]: value for name, value in dumped.items() if name in _SAME},
    }
    if section.capacity_scheduler_policy is not None:
        arguments["scheduler_config"] = {"capacity_scheduler_policy": section.capacity_scheduler_policy}
    if "return_perf_metrics" in known_arguments(config):  # an arrival is timed for this alone, not for a request's wish
        arguments["return_perf_metrics"] = True
    if not has_salts(engine_class(config)):  # cached blocks of earlier prompts would make the same ones cost nothing
        arguments["kv_cache_config"] = {"enable_block_reuse": False, **arguments.get("kv_cache_config", {})}
    if not built:
        arguments |= _graphs(section) | _of_pytorch(config)
    return arguments


def _common(config: ExperimentConfig, model: Path) -> dict[str, Any]:
    return {
        "model": str(model),
        "dtype": DTYPES[config.precision],
        "trust_remote_code": config.trust_remote_code,
        "skip_tokenizer_init": True,
    }


def _graphs(section: TensorRTConfig) -> dict[str, Any]:
    if section.cuda_graph is False:
        return {"cuda_graph_config": None}
    sizes = {"max_batch_size": section.cuda_graph_max_batch_size, "enable_padding": section.cuda_graph_enable_padding}
    given = {name: value for name, value in sizes.items() if value is not None}
    return {"cuda_graph_config": given} if given or section.cuda_graph else {}


def _of_pytorch(config: ExperimentConfig) -> dict[str, Any]:
    section = section_of(config)
    arguments: dict[str, Any] = {}
    if section.torch_compile is not None:
        arguments["torch_compile_config"] = {} if section.torch_compile else None
    if section.speculative_config is not None:
        arguments["speculative_config"] = _drafting(section.speculative_config)
    if not config.decoder.is_deterministic and "sampler_type" in known_arguments(config):
        arguments["sampler_type"] = SEEDED_SAMPLER
    return arguments


_DRAFTING: Final[Mapping[str, tuple[str, ...]]] = {
    "NGram": ("NGramDecodingConfig",),
    "Draft_Target": ("DraftTargetDecodingConfig",),
    "Eagle3": ("Eagle3DecodingConfig", "EagleDecodingConfig"),
    "MTP": ("MTPDecodingConfig",),
}
"""Classes in `tensorrt_llm.llmapi`, newest name first."""

_DRAFTER_FIELDS: Final = ("speculative_model", "speculative_model_dir")
"""What they call the drafter's place, newest name first."""


def _drafting(section: TensorRTSpeculativeConfig) -> Any:
    found = (getattr(llmapi, name, None) for name in _DRAFTING[section.decoding_type])
    drafting: Any = next((kind for kind in found if kind is not None), None)
    if drafting is None:
        raise BackendError(
            f"tensorrt.speculative_config.decoding_type: TensorRT-LLM {tensorrt_llm.__version__} has no "
            f"{section.decoding_type}. Use another one, or another version."
        )
    arguments: dict[str, Any] = section.model_dump(exclude_none=True, exclude={"decoding_type", "speculative_model"})
    if section.decoding_type == "MTP" and "max_draft_len" in arguments:
        arguments["num_nextn_predict_layers"] = arguments.pop("max_draft_len")
    if section.speculative_model is not None:
        name = next(name for name in _DRAFTER_FIELDS if name in drafting.model_fields)
        arguments[name] = section.speculative_model
    return drafting(**arguments)


def build_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Everything that is fixed when an engine is built, JSON-ready: it tells built engines apart."""
    section = section_of(config)
    return {
        "dtype": DTYPES[config.precision],
        "trust_remote_code": config.trust_remote_code,
        "quantization": section.quantization,
        **{name: getattr(section, name) for name in (*_OF_A_BUILD, *_OF_THE_MAPPING)},
        "passthrough_kwargs": config.passthrough_kwargs or {},
    }


def build_arguments(config: ExperimentConfig, model: Path) -> dict[str, Any]:
    """Keyword arguments of the `LLM` that builds an engine of the checkpoint in `model`."""
    section = section_of(config)
    limits = {name: value for name in _OF_A_BUILD if (value := getattr(section, name)) is not None}
    arguments = {
        **_common(config, model),
        **{_SAME[name]: value for name in _OF_THE_MAPPING if (value := getattr(section, name)) is not None},
        "build_config": llmapi.BuildConfig(**limits),
    }
    if section.quantization is not None:
        algorithm = getattr(llmapi.QuantAlgo, ALGORITHMS[section.quantization])
        arguments["quant_config"] = llmapi.QuantConfig(quant_algo=algorithm)
    return {**arguments, **(config.passthrough_kwargs or {})}


def read_back(arguments: Any, section: TensorRTConfig) -> dict[str, Any]:
    """The engine's settings by config path, JSON-ready.

    Args:
        arguments: The loaded `LLM`'s `args`.
        section: Says which engine was built ahead: the arguments do not.
    """
    dtype = str(arguments.dtype)
    precision = {name: kind for kind, name in DTYPES.items()}.get(dtype, dtype)
    own = {"quantization": section.quantization, "engine_path": section.engine_path}
    settings = {f"tensorrt.{name}": read(arguments) for name, read in READ_BACK.items()}
    return {"precision": precision, **settings, **{f"tensorrt.{name}": value for name, value in own.items()}}


def _plain(value: Any) -> Any:
    """An enumeration's name, or the value itself."""
    return value if isinstance(value, bool | int | float | str | None) else getattr(value, "name", str(value))


def _fields(name: str, *inner: str) -> Callable[[Any], dict[str, Any] | None]:
    def read(arguments: Any) -> dict[str, Any] | None:
        found = getattr(arguments, name, None)
        return None if found is None else {field: _plain(getattr(found, field, None)) for field in inner}

    return read


def _inner(name: str, field: str) -> Callable[[Any], Any]:
    return lambda arguments: _plain(getattr(getattr(arguments, name, None), field, None))


def _drafting_found(arguments: Any) -> dict[str, Any] | None:
    found = getattr(arguments, "speculative_config", None)
    if found is None:
        return None
    drafter = next((value for name in _DRAFTER_FIELDS if (value := getattr(found, name, None)) is not None), None)
    name = type(found).__name__
    kind = next((kind for kind, names in _DRAFTING.items() if name in names), name)
    names = ("max_draft_len", "max_matching_ngram_size")
    return {
        "decoding_type": kind,
        **{name: getattr(found, name, None) for name in names},
        "speculative_model": None if drafter is None else str(drafter),
    }


READ_BACK: Final[Mapping[str, Callable[[Any], Any]]] = {
    "max_batch_size": lambda found: found.max_batch_size,
    "max_num_tokens": lambda found: found.max_num_tokens,
    "max_seq_len": lambda found: found.max_seq_len,
    "max_input_len": lambda found: getattr(found, "max_input_len", None),
    "tp_size": lambda found: found.tensor_parallel_size,
    "pp_size": lambda found: found.pipeline_parallel_size,
    "moe_expert_parallel_size": lambda found: found.moe_expert_parallel_size,
    "kv_cache_config": _fields(
        "kv_cache_config",
        "free_gpu_memory_fraction",
        "max_tokens",
        "tokens_per_block",
        "dtype",
        "enable_block_reuse",
        "enable_partial_reuse",
        "host_cache_size",
    ),
    "enable_chunked_prefill": lambda found: found.enable_chunked_prefill,
    "capacity_scheduler_policy": _inner("scheduler_config", "capacity_scheduler_policy"),
    "batching_type": lambda found: _plain(getattr(found, "batching_type", None)),
    "attn_backend": lambda found: getattr(found, "attn_backend", None),
    "cuda_graph": lambda found: getattr(found, "cuda_graph_config", None) is not None,
    "cuda_graph_max_batch_size": _inner("cuda_graph_config", "max_batch_size"),
    "cuda_graph_enable_padding": _inner("cuda_graph_config", "enable_padding"),
    "torch_compile": lambda found: getattr(found, "torch_compile_config", None) is not None,
    "disable_overlap_scheduler": lambda found: getattr(found, "disable_overlap_scheduler", None),
    "speculative_config": _drafting_found,
}
"""Where the engine's own arguments, worked out, hold each field of the section."""
