"""What can be set on one engine only, under the engine's own names.

Every field is `None` by default, which means "the engine's own default" and is not passed to the engine. Names, types
and ranges are those of transformers (4.56 to 5.23), vLLM (0.30 to 0.33) and TensorRT-LLM (0.20 to 1.3).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from llenergymeasure.config.base import ConfigModel, NonBlankStr, Problem, reject

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class PyTorchConfig(ConfigModel):
    """Hugging Face transformers on PyTorch: `from_pretrained`, then `generate` on left-padded batches."""

    batch_size: Count | None = Field(default=None, description="Prompts per call of generate; null is 1.")
    device: Literal["auto", "cuda", "cpu"] | None = Field(
        default=None,
        description="Where to run; null requires a CUDA GPU, auto takes one if there is one, else the CPU.",
    )
    num_processes: Count | None = Field(
        default=None, description="Copies of the model, one per GPU, that share the prompts (data parallel)."
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        default=None, description="How accelerate spreads one model over the visible GPUs."
    )
    attn_implementation: Literal["sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager"] | None = (
        Field(default=None, description="Attention kernel.")
    )
    torch_compile: bool | None = Field(default=None, description="Compile the forward pass with torch.compile.")
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = (
        Field(default=None, description="Mode of torch.compile; needs torch_compile.")
    )
    torch_compile_backend: Literal["inductor", "cudagraphs", "aot_eager", "eager"] | None = Field(
        default=None, description="Compiler behind torch.compile; needs torch_compile."
    )
    torch_compile_dynamic: bool | None = Field(
        default=None, description="Whether torch.compile makes kernels for varying shapes; needs torch_compile."
    )
    use_cache: bool | None = Field(
        default=None, description="Keep keys and values between steps; false recomputes the whole text for each token."
    )
    cache_implementation: Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"] | None = Field(
        default=None, description="Kind of key-value cache: grown, preallocated, kept in host memory, or quantised."
    )
    num_beams: Count | None = Field(default=None, description="Beams of beam search; 1 is none.")
    prompt_lookup_num_tokens: Count | None = Field(
        default=None, description="Tokens to draft per step from n-grams of the text so far; needs batch_size 1."
    )
    max_matching_ngram_size: Count | None = Field(
        default=None, description="Longest n-gram prompt lookup matches; needs prompt_lookup_num_tokens."
    )
    assistant_model: NonBlankStr | None = Field(
        default=None, description="Smaller model that drafts tokens (speculative decoding); needs batch_size 1."
    )
    num_assistant_tokens: Count | None = Field(
        default=None, description="Tokens the assistant drafts per step; needs assistant_model."
    )
    num_assistant_tokens_schedule: Literal["heuristic", "heuristic_transient", "constant"] | None = Field(
        default=None, description="How the number of drafted tokens changes while generating; needs assistant_model."
    )
    load_in_8bit: bool | None = Field(default=None, description="Quantise the weights to 8 bits with bitsandbytes.")
    load_in_4bit: bool | None = Field(default=None, description="Quantise the weights to 4 bits with bitsandbytes.")
    bnb_4bit_compute_dtype: Literal["float16", "bfloat16", "float32"] | None = Field(
        default=None, description="Type the 4-bit weights are multiplied in; needs load_in_4bit."
    )
    bnb_4bit_quant_type: Literal["fp4", "nf4"] | None = Field(
        default=None, description="4-bit number format; needs load_in_4bit."
    )
    bnb_4bit_use_double_quant: bool | None = Field(
        default=None, description="Quantise the quantisation constants too; needs load_in_4bit."
    )
    allow_tf32: bool | None = Field(
        default=None, description="Let fp32 matrix products use TensorFloat-32 cores; needs precision fp32."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        reject(
            [
                *_needs("pytorch", self, ("torch_compile",), _COMPILE_FIELDS),
                *_needs("pytorch", self, ("load_in_4bit",), _BNB_4BIT_FIELDS),
                *_needs("pytorch", self, ("prompt_lookup_num_tokens",), ("max_matching_ngram_size",)),
                *_needs("pytorch", self, ("assistant_model",), _ASSISTANT_FIELDS),
                *_pytorch_exclusions(self),
            ]
        )
        return self


class VLLMSpeculativeConfig(ConfigModel):
    """vLLM's `speculative_config`: several tokens are drafted, then checked in one pass."""

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "medusa", "mlp_speculator", "mtp", "suffix"] | None = (
        Field(default=None, description="How tokens are drafted; null lets vLLM tell it from the draft model.")
    )
    model: NonBlankStr | None = Field(default=None, description="Draft model, EAGLE head or other draft weights.")
    num_speculative_tokens: Count | None = Field(default=None, description="Tokens drafted per step.")
    prompt_lookup_max: Count | None = Field(default=None, description="Longest n-gram to match; needs method ngram.")
    prompt_lookup_min: Count | None = Field(default=None, description="Shortest n-gram to match; needs method ngram.")
    draft_tensor_parallel_size: Count | None = Field(
        default=None, description="GPUs the draft model is split over: 1, or the target model's number."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        reject(_vllm_speculative_problems(self))
        return self


class VLLMConfig(ConfigModel):
    """vLLM's offline engine; the fields are its engine arguments."""

    max_num_seqs: Count | None = Field(default=None, description="Most sequences in one step: vLLM's batch size.")
    max_num_batched_tokens: Count | None = Field(default=None, description="Most tokens in one step.")
    max_model_len: Count | None = Field(default=None, description="Longest sequence, prompt and output together.")
    tensor_parallel_size: Count | None = Field(default=None, description="GPUs each layer is split over.")
    pipeline_parallel_size: Count | None = Field(default=None, description="GPUs the layers are dealt out to.")
    enable_expert_parallel: bool | None = Field(
        default=None, description="Split a mixture of experts by expert instead of by tensor."
    )
    distributed_executor_backend: Literal["mp", "ray", "uni"] | None = Field(
        default=None, description="What starts the workers of a parallel engine."
    )
    gpu_memory_utilization: float | None = Field(
        default=None, ge=0.1, le=1.0, description="Share of the GPU's memory vLLM may take."
    )
    cpu_offload_gb: float | None = Field(
        default=None, ge=0.0, description="GiB of weights per GPU that stay in host memory."
    )
    kv_cache_dtype: Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] | None = Field(
        default=None, description="Number format of the key-value cache."
    )
    block_size: Literal[8, 16, 32, 64, 128, 256] | None = Field(
        default=None, description="Tokens per block of the key-value cache."
    )
    enable_prefix_caching: bool | None = Field(
        default=None, description="Reuse the key-value blocks of shared prompt beginnings."
    )
    enable_chunked_prefill: bool | None = Field(
        default=None, description="Cut long prefills into chunks that share steps with decoding."
    )
    enforce_eager: bool | None = Field(default=None, description="No CUDA graphs and no compilation.")
    max_cudagraph_capture_size: Count | None = Field(
        default=None, description="Largest batch a CUDA graph is captured for; refused with enforce_eager."
    )
    attention_backend: (
        Literal["FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION", "FLASHMLA", "TRITON_MLA", "CPU_ATTN"]
        | None
    ) = Field(default=None, description="Attention kernel.")
    disable_custom_all_reduce: bool | None = Field(
        default=None, description="Use NCCL instead of vLLM's own all-reduce between GPUs."
    )
    async_scheduling: bool | None = Field(default=None, description="Schedule the next step while this one runs.")
    performance_mode: Literal["balanced", "interactivity", "throughput"] | None = Field(
        default=None, description="What vLLM tunes kernels and graphs for."
    )
    quantization: (
        Literal[
            "awq",
            "gptq",
            "fp8",
            "awq_marlin",
            "gptq_marlin",
            "compressed-tensors",
            "modelopt",
            "mxfp4",
            "int8_per_channel_weight_only",
        ]
        | None
    ) = Field(
        default=None, description="Weight quantisation: that of the checkpoint, or made while loading (fp8, int8)."
    )
    speculative_config: VLLMSpeculativeConfig | None = Field(default=None, description="Speculative decoding.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        reject(_vllm_problems(self))
        return self


class TensorRTKVCacheConfig(ConfigModel):
    """TensorRT-LLM's `KvCacheConfig`."""

    free_gpu_memory_fraction: Fraction | None = Field(
        default=None, description="Share of the memory left after loading that the cache may take."
    )
    max_tokens: Count | None = Field(default=None, description="Most tokens in the cache.")
    tokens_per_block: Count | None = Field(default=None, description="Tokens per block of the cache.")
    dtype: Literal["auto", "float16", "bfloat16", "fp8", "nvfp4"] | None = Field(
        default=None, description="Number format of the cache."
    )
    enable_block_reuse: bool | None = Field(default=None, description="Reuse the blocks of shared prompt beginnings.")
    enable_partial_reuse: bool | None = Field(
        default=None, description="Reuse blocks that match in part; needs block reuse."
    )
    host_cache_size: int | None = Field(default=None, ge=0, description="Bytes of host memory for evicted blocks.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.enable_block_reuse is False and self.enable_partial_reuse is not None:
            reject(
                [
                    Problem(
                        "enable_partial_reuse",
                        "tensorrt.kv_cache_config.enable_partial_reuse has no effect with enable_block_reuse=False. "
                        "Remove it or switch block reuse on.",
                    )
                ]
            )
        return self


class TensorRTSpeculativeConfig(ConfigModel):
    """TensorRT-LLM's speculative decoding: several tokens are drafted, then checked in one pass."""

    decoding_type: Literal["NGram", "Draft_Target", "Eagle3", "MTP"] = Field(description="How tokens are drafted.")
    max_draft_len: Count | None = Field(default=None, description="Most tokens drafted per step.")
    speculative_model: NonBlankStr | None = Field(
        default=None, description="Draft model or EAGLE head; needed by Draft_Target and Eagle3."
    )
    max_matching_ngram_size: Count | None = Field(
        default=None, description="Longest n-gram to match; needs decoding_type NGram."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        reject(_tensorrt_speculative_problems(self))
        return self


class TensorRTConfig(ConfigModel):
    """TensorRT-LLM's `LLM`: both its engine-building and its PyTorch-based generation."""

    max_batch_size: Count | None = Field(default=None, description="Most sequences in one step.")
    max_num_tokens: Count | None = Field(default=None, description="Most tokens in one step.")
    max_seq_len: Count | None = Field(default=None, description="Longest sequence, prompt and output together.")
    max_input_len: Count | None = Field(default=None, description="Longest prompt; needs an engine build.")
    tp_size: Count | None = Field(default=None, description="GPUs each layer is split over.")
    pp_size: Count | None = Field(default=None, description="GPUs the layers are dealt out to.")
    moe_expert_parallel_size: Count | None = Field(
        default=None, description="GPUs a mixture of experts is split over by expert."
    )
    quantization: Literal["int8_sq", "int4_awq", "fp8"] | None = Field(
        default=None, description="Weight (and for int8_sq and fp8 activation) quantisation."
    )
    engine_path: NonBlankStr | None = Field(
        default=None, description="Directory of an engine that is built already; build settings are then refused."
    )
    kv_cache_config: TensorRTKVCacheConfig | None = Field(default=None, description="Key-value cache.")
    enable_chunked_prefill: bool | None = Field(
        default=None, description="Cut long prefills into chunks that share steps with decoding."
    )
    capacity_scheduler_policy: Literal["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"] | None = Field(
        default=None, description="Which waiting requests are let into the batch."
    )
    batching_type: Literal["INFLIGHT", "STATIC"] | None = Field(
        default=None, description="Continuous or static batching; needs an engine build."
    )
    attn_backend: Literal["TRTLLM", "FLASHINFER", "VANILLA"] | None = Field(
        default=None, description="Attention kernel; needs the PyTorch-based engine."
    )
    cuda_graph: bool | None = Field(
        default=None, description="Replay decode steps from CUDA graphs; false passes cuda_graph_config=None."
    )
    cuda_graph_max_batch_size: Count | None = Field(
        default=None, description="Largest batch a CUDA graph is captured for; refused with cuda_graph false."
    )
    cuda_graph_enable_padding: bool | None = Field(
        default=None, description="Round batches up to the next captured size; refused with cuda_graph false."
    )
    torch_compile: bool | None = Field(
        default=None, description="Compile the model with torch.compile; needs the PyTorch-based engine."
    )
    disable_overlap_scheduler: bool | None = Field(
        default=None, description="Do not schedule the next step while this one runs; needs the PyTorch-based engine."
    )
    speculative_config: TensorRTSpeculativeConfig | None = Field(default=None, description="Speculative decoding.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        reject(_tensorrt_problems(self))
        return self


_COMPILE_FIELDS = ("torch_compile_mode", "torch_compile_backend", "torch_compile_dynamic")
_BNB_4BIT_FIELDS = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
_ASSISTANT_FIELDS = ("num_assistant_tokens", "num_assistant_tokens_schedule")
_CUDA_GRAPH_FIELDS = ("cuda_graph_max_batch_size", "cuda_graph_enable_padding")
_ENGINE_BUILD_FIELDS = ("max_input_len", "quantization", "tp_size", "pp_size", "moe_expert_parallel_size")


def _needs(section: str, config: ConfigModel, switches: tuple[str, ...], fields: tuple[str, ...]) -> list[Problem]:
    """Fields that do nothing because none of the settings they refine is on."""
    if any(getattr(config, switch) for switch in switches):
        return []
    return [
        Problem(
            name,
            f"{section}.{name}: {getattr(config, name)!r} has no effect without {section}.{switches[0]}. "
            f"Set {switches[0]} or remove {name}.",
        )
        for name in fields
        if getattr(config, name) is not None
    ]


def _excluded(section: str, config: ConfigModel, left: str, right: str, why: str) -> Problem:
    return Problem(
        right,
        f"{section}.{right}: {getattr(config, right)!r} cannot be combined with "
        f"{section}.{left}={getattr(config, left)!r}: {why}. Remove one of the two.",
    )


def _pytorch_exclusions(config: PyTorchConfig) -> list[Problem]:
    def both(left: str, right: str, why: str) -> Problem:
        return _excluded("pytorch", config, left, right, why)

    problems = []
    if config.load_in_4bit and config.load_in_8bit:
        problems.append(both("load_in_4bit", "load_in_8bit", "weights have one width"))
    if config.use_cache is False and config.cache_implementation is not None:
        problems.append(both("use_cache", "cache_implementation", "there is no cache then"))
    if config.device == "cpu" and config.device_map is not None:
        problems.append(both("device", "device_map", "a map spreads the model over GPUs"))
    if (config.num_processes or 1) > 1 and config.device_map is not None:
        problems.append(both("num_processes", "device_map", "each process has one GPU of its own"))
    if config.prompt_lookup_num_tokens is not None and config.assistant_model is not None:
        problems.append(both("prompt_lookup_num_tokens", "assistant_model", "only one of them can draft"))
    return [*problems, *_assisted_generation_problems(config)]


def _assisted_generation_problems(config: PyTorchConfig) -> list[Problem]:
    """What transformers' assisted generation refuses: batches, beams, and running without a cache."""
    drafter = next((name for name in ("prompt_lookup_num_tokens", "assistant_model") if getattr(config, name)), None)
    if drafter is None:
        return []
    problems = []
    if (config.batch_size or 1) > 1:
        problems.append(_excluded("pytorch", config, "batch_size", drafter, "drafting works on one prompt at a time"))
    if (config.num_beams or 1) > 1:
        problems.append(_excluded("pytorch", config, "num_beams", drafter, "drafting follows a single beam"))
    if config.use_cache is False:
        problems.append(_excluded("pytorch", config, "use_cache", drafter, "checking drafts needs the cache"))
    if config.cache_implementation in ("static", "offloaded_static"):
        problems.append(
            _excluded("pytorch", config, "cache_implementation", drafter, "rejected drafts are cropped from the cache")
        )
    return problems


def _vllm_speculative_problems(config: VLLMSpeculativeConfig) -> list[Problem]:
    where = "vllm.speculative_config"
    problems = []
    if config.method is None and config.model is None:
        problems.append(Problem("method", f"{where}: needs method or model. Set method: ngram, or name a draft model."))
    if config.method == "ngram":
        if config.model is not None:
            problems.append(_excluded(where, config, "method", "model", "n-grams come from the text itself"))
    else:
        problems += [
            Problem(name, f"{where}.{name}: {getattr(config, name)} has no effect without method: ngram. Remove it.")
            for name in ("prompt_lookup_max", "prompt_lookup_min")
            if getattr(config, name) is not None
        ]
    if (config.prompt_lookup_min or 1) > (config.prompt_lookup_max or config.prompt_lookup_min or 1):
        problems.append(
            Problem(
                "prompt_lookup_min",
                f"{where}.prompt_lookup_min: {config.prompt_lookup_min} exceeds "
                f"prompt_lookup_max={config.prompt_lookup_max}. Lower it.",
            )
        )
    return problems


def _vllm_problems(config: VLLMConfig) -> list[Problem]:
    problems = []
    if config.enforce_eager and config.max_cudagraph_capture_size is not None:
        problems.append(
            _excluded("vllm", config, "enforce_eager", "max_cudagraph_capture_size", "eager mode captures no graphs")
        )
    if (
        config.enable_chunked_prefill is False
        and config.max_num_batched_tokens is not None
        and config.max_model_len is not None
        and config.max_num_batched_tokens < config.max_model_len
    ):
        problems.append(
            Problem(
                "max_num_batched_tokens",
                f"vllm.max_num_batched_tokens: {config.max_num_batched_tokens} is below "
                f"max_model_len={config.max_model_len}, which needs enable_chunked_prefill. Raise it or allow chunks.",
            )
        )
    return problems


def _tensorrt_speculative_problems(config: TensorRTSpeculativeConfig) -> list[Problem]:
    where = "tensorrt.speculative_config"
    problems = []
    if config.decoding_type in ("Draft_Target", "Eagle3") and config.speculative_model is None:
        problems.append(
            Problem(
                "speculative_model", f"{where}.speculative_model: needed by {config.decoding_type}. Name the drafter."
            )
        )
    if config.decoding_type == "NGram" and config.speculative_model is not None:
        problems.append(
            _excluded(where, config, "decoding_type", "speculative_model", "n-grams come from the text itself")
        )
    if config.decoding_type != "NGram" and config.max_matching_ngram_size is not None:
        problems.append(
            _excluded(where, config, "decoding_type", "max_matching_ngram_size", "only NGram matches n-grams")
        )
    return problems


def _tensorrt_problems(config: TensorRTConfig) -> list[Problem]:
    problems = []
    if config.cuda_graph is False:
        problems += [
            _excluded("tensorrt", config, "cuda_graph", name, "no graph is captured")
            for name in _CUDA_GRAPH_FIELDS
            if getattr(config, name) is not None
        ]
    if config.engine_path is not None:
        problems += [
            _excluded("tensorrt", config, "engine_path", name, "it is fixed when the engine is built")
            for name in _ENGINE_BUILD_FIELDS
            if getattr(config, name) is not None
        ]
    return problems
