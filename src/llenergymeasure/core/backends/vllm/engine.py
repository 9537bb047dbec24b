"""From a config to the arguments of `vllm.LLM`; and back: what the engine made of them, asked of its own config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError
from vllm import EngineArgs
from vllm.config import VllmConfig
from vllm.usage.usage_lib import UsageContext

from llenergymeasure.config.backend_configs import VLLMConfig
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.vllm.worker import WORKER_EXTENSION
from llenergymeasure.core.model.source import ModelSource, find_adapter, find_model, first_line
from llenergymeasure.exceptions import BackendError

DTYPES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `max_lora_rank` may be (vllm/config/lora.py)."""

OWNED_ARGUMENTS: Final[Mapping[str, str]] = {
    "model": "model",
    "tokenizer": "model",
    "runner": "nothing (texts are generated)",
    "revision": "revision",
    "tokenizer_revision": "revision",
    "code_revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "download_dir": "output.model_cache_dir of the user config",
    "seed": "random_seed",
    "enable_lora": "lora",
    "max_lora_rank": "lora",
    "disable_log_stats": "nothing (tokens are timed by them)",
    "enable_logging_iteration_details": "nothing (steps are told by them)",
    "stream_interval": "nothing (every token is timed)",
    "generation_config": "decoder",
    "override_generation_config": "decoder",
    "worker_extension_cls": "nothing (memory is told by it)",
    "use_tqdm_on_load": "nothing (progress is told otherwise)",
    "skip_tokenizer_init": "nothing (texts end by the tokenizer)",
    "spec_method": "vllm.speculative_config.method",
    "spec_model": "vllm.speculative_config.model",
    "spec_tokens": "vllm.speculative_config.num_speculative_tokens",
}
"""Arguments of `LLM` that passthrough_kwargs may not set, and what sets them instead."""


def section_of(config: ExperimentConfig) -> VLLMConfig:
    """The experiment's vllm section; one of defaults where it is left out."""
    return config.vllm or VLLMConfig()


def engine_arguments(config: ExperimentConfig, source: ModelSource, cache_home: Path | None) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`: what was set, and what this package needs; the rest stays vllm's default.

    Raises:
        BackendError: The adapter or the draft model cannot be had.
    """
    arguments = {
        "model": source.location,
        "dtype": DTYPES[config.precision],
        "seed": config.random_seed,
        "trust_remote_code": config.trust_remote_code,
        "generation_config": "vllm",  # the checkpoint's sampling defaults must not add to the decoder's settings
        "disable_log_stats": False,
        "enable_logging_iteration_details": True,
        "worker_extension_cls": WORKER_EXTENSION,
        "use_tqdm_on_load": False,
        **_fetched_from(source),
        **section_of(config).model_dump(exclude_none=True),
    }
    drafter = arguments.get("speculative_config", {}).get("model")
    if drafter is not None:
        found = find_model(drafter, None, cache_home=cache_home, what="vllm.speculative_config.model")
        arguments["speculative_config"]["model"] = found.location
    if config.lora is not None:
        rank = int(find_adapter(config.lora, cache_home).config.get("r") or LORA_RANKS[-1])
        arguments |= {"enable_lora": True, "max_loras": 1}
        arguments["max_lora_rank"] = next((allowed for allowed in LORA_RANKS if allowed >= rank), rank)
    return {**arguments, **(config.passthrough_kwargs or {})}


def _fetched_from(source: ModelSource) -> dict[str, Any]:
    """Where the Hub's client finds the very files that were found."""
    if source.is_here:
        return {}
    cache = {} if source.cache_dir is None else {"download_dir": source.cache_dir}
    return {"revision": source.revision, "tokenizer_revision": source.revision, **cache}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Have vLLM work out its whole config from the arguments; no weight is read and no process started.

    Raises:
        BackendError: It refuses them.
    """
    try:
        EngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS)
    except Exception as error:  # every part of its config has checks of its own
        raise BackendError(f"vLLM refuses these settings: {told_by_vllm(error)}") from error


def told_by_vllm(error: Exception) -> str:
    """What an error of vLLM's says, without the pages around it."""
    if isinstance(error, ValidationError):
        return in_our_words("; ".join(str(each["msg"]).removeprefix("Value error, ") for each in error.errors()))
    return in_our_words(first_line(error))


def in_our_words(text: str) -> str:
    """A text of vLLM's, with the settings that stand here for the flags of its server."""

    def setting(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return f"vllm.{name}" if name in VLLMConfig.model_fields else found[0]

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", setting, text)


READ_BACK: Final[Mapping[str, Callable[[VllmConfig], Any]]] = {
    "max_num_seqs": lambda found: found.scheduler_config.max_num_seqs,
    "max_num_batched_tokens": lambda found: found.scheduler_config.max_num_batched_tokens,
    "max_model_len": lambda found: found.model_config.max_model_len,
    "tensor_parallel_size": lambda found: found.parallel_config.tensor_parallel_size,
    "pipeline_parallel_size": lambda found: found.parallel_config.pipeline_parallel_size,
    "enable_expert_parallel": lambda found: found.parallel_config.enable_expert_parallel,
    "distributed_executor_backend": lambda found: _text(found.parallel_config.distributed_executor_backend),
    "gpu_memory_utilization": lambda found: found.cache_config.gpu_memory_utilization,
    "cpu_offload_gb": lambda found: found.offload_config.uva.cpu_offload_gb,
    "kv_cache_dtype": lambda found: found.cache_config.cache_dtype,
    "block_size": lambda found: found.cache_config.block_size,
    "enable_prefix_caching": lambda found: found.cache_config.enable_prefix_caching,
    "enable_chunked_prefill": lambda found: found.scheduler_config.enable_chunked_prefill,
    "enforce_eager": lambda found: found.model_config.enforce_eager,
    "max_cudagraph_capture_size": lambda found: found.compilation_config.max_cudagraph_capture_size,
    "attention_backend": lambda found: getattr(found.attention_config.backend, "name", None),
    "disable_custom_all_reduce": lambda found: found.parallel_config.disable_custom_all_reduce,
    "async_scheduling": lambda found: found.scheduler_config.async_scheduling,
    "performance_mode": lambda found: found.performance_mode,
    "quantization": lambda found: _text(found.model_config.quantization),
    "speculative_config": lambda found: _speculation(found.speculative_config),
}
"""Where the engine's own config holds each field of the section."""

_SPECULATION_FIELDS: Final = (
    "method",
    "model",
    "num_speculative_tokens",
    "prompt_lookup_max",
    "prompt_lookup_min",
    "draft_tensor_parallel_size",
)


def read_back(found: VllmConfig) -> dict[str, Any]:
    """The engine's settings by config path, JSON-ready."""
    precision = {getattr(torch, dtype): name for name, dtype in DTYPES.items()}.get(found.model_config.dtype)
    settings = {f"vllm.{name}": read(found) for name, read in READ_BACK.items()}
    return {"precision": precision or str(found.model_config.dtype), **settings}


def _text(value: Any) -> str | None:
    return None if value is None else getattr(value, "__name__", str(value))


def _speculation(found: Any) -> dict[str, Any] | None:
    return None if found is None else {name: getattr(found, name) for name in _SPECULATION_FIELDS}
