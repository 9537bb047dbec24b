"""What can be set on one engine only, under the engine's own names.

Every field is `None` by default, which means "the engine's own default" and is not passed to the engine. Names, types
and ranges are those of transformers 5, vLLM (0.30 to 0.33) and TensorRT-LLM (1.0 to 1.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from llenergymeasure.config.base import (
    BackendConfig,
    Excludes,
    Needs,
    PathStr,
    Problem,
    Rule,
    RuledConfig,
    given,
    several,
    unless,
    when,
)

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class PyTorchConfig(BackendConfig):
    """Hugging Face transformers on PyTorch: `from_pretrained`, then `generate` on left-padded batches."""

    batch_size: Count | None = None
    """Prompts per call of generate; null is 1."""
    device: Literal["auto", "cuda", "cpu"] | None = None
    """Where to run; null requires a CUDA GPU, auto takes one if there is one, else the CPU."""
    num_processes: Count | None = None
    """Copies of the model, one per GPU, that share the prompts (data parallel)."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """How accelerate spreads one model over the visible GPUs."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager"] | None = (
        None
    )
    """Attention kernel."""
    torch_compile: bool | None = None
    """Compile the forward pass with torch.compile."""
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = (
        None
    )
    """Mode of torch.compile; needs torch_compile."""
    torch_compile_backend: Literal["inductor", "cudagraphs", "aot_eager", "eager"] | None = None
    """Compiler behind torch.compile; needs torch_compile."""
    torch_compile_dynamic: bool | None = None
    """Whether torch.compile makes kernels for varying shapes; needs torch_compile."""
    use_cache: bool | None = None
    """Keep keys and values between steps; false recomputes the whole text for each token."""
    cache_implementation: Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"] | None = None
    """Kind of key-value cache: grown, preallocated, kept in host memory, or quantised."""
    num_beams: Count | None = None
    """Beams of beam search; 1 is none."""
    prompt_lookup_num_tokens: Count | None = None
    """Tokens to draft per step from n-grams of the text so far; needs batch_size 1."""
    max_matching_ngram_size: Count | None = None
    """Longest n-gram prompt lookup matches; needs prompt_lookup_num_tokens."""
    assistant_model: PathStr | None = None
    """Smaller model that drafts tokens (speculative decoding); needs batch_size 1."""
    num_assistant_tokens: Count | None = None
    """Tokens the assistant drafts per step; needs assistant_model."""
    num_assistant_tokens_schedule: Literal["heuristic", "heuristic_transient", "constant"] | None = None
    """How the number of drafted tokens changes while generating; needs assistant_model."""
    load_in_8bit: bool | None = None
    """Quantise the weights to 8 bits with bitsandbytes."""
    load_in_4bit: bool | None = None
    """Quantise the weights to 4 bits with bitsandbytes."""
    bnb_4bit_compute_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Type the 4-bit weights are multiplied in; needs load_in_4bit."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] | None = None
    """4-bit number format; needs load_in_4bit."""
    bnb_4bit_use_double_quant: bool | None = None
    """Quantise the quantisation constants too; needs load_in_4bit."""
    allow_tf32: bool | None = None
    """Let fp32 matrix products use TensorFloat-32 cores; needs precision fp32."""
    section: ClassVar[str] = "pytorch"
    default_batch: ClassVar[int] = 1
    fills_memory: ClassVar[bool] = False
    null_means: ClassVar[Mapping[str, Any]] = {
        "batch_size": 1,
        "num_processes": 1,
        "num_beams": 1,
        "use_cache": True,
        "cache_implementation": "dynamic",
        "load_in_4bit": False,
        "load_in_8bit": False,
    }
    rules: ClassVar[tuple[Rule, ...]] = (
        Needs("torch_compile_mode", when("torch_compile", True)),
        Needs("torch_compile_backend", when("torch_compile", True)),
        Needs("torch_compile_dynamic", when("torch_compile", True)),
        Needs("bnb_4bit_compute_dtype", when("load_in_4bit", True)),
        Needs("bnb_4bit_quant_type", when("load_in_4bit", True)),
        Needs("bnb_4bit_use_double_quant", when("load_in_4bit", True)),
        Needs("max_matching_ngram_size", given("prompt_lookup_num_tokens")),
        Needs("num_assistant_tokens", given("assistant_model")),
        Needs("num_assistant_tokens_schedule", given("assistant_model")),
        Excludes(when("load_in_4bit", True), when("load_in_8bit", True), "weights have one width"),
        Excludes(when("use_cache", False), given("cache_implementation"), "there is no cache then"),
        Excludes(when("device", "cpu"), given("device_map"), "a map spreads the model over GPUs"),
        Excludes(several("num_processes"), given("device_map"), "each process has one GPU of its own"),
        Excludes(given("prompt_lookup_num_tokens"), given("assistant_model"), "only one of them can draft"),
        *(
            Excludes(condition, given(drafter), why)  # as transformers' assisted generation refuses them
            for drafter in ("prompt_lookup_num_tokens", "assistant_model")
            for condition, why in (
                (several("batch_size"), "drafting works on one prompt at a time"),
                (several("num_beams"), "drafting follows a single beam"),
                (when("use_cache", False), "checking drafts needs the cache"),
                (
                    when("cache_implementation", "static", "offloaded_static"),
                    "rejected drafts are cropped from the cache",
                ),
            )
        ),
    )

    @property
    def rows_per_prompt(self) -> int:
        """Beams."""
        return self.num_beams or 1

    @property
    def keeps_cache(self) -> bool:
        """`use_cache`."""
        return self.use_cache is not False

    @property
    def processes(self) -> int:
        """Data-parallel copies."""
        return self.num_processes or 1

    @property
    def device_choice(self) -> Literal["auto", "cuda", "cpu"] | None:
        """`device`."""
        return self.device

    @property
    def loading_bits(self) -> int | None:
        """By bitsandbytes."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    def resolved(self, n: int) -> dict[str, Any]:
        """As of every engine; and a batch holds no more prompts than a process gets."""
        settings = super().resolved(n)
        return {**settings, "batch_size": min(self.batch, -(-n // self.processes))}

    def gpu_count(self, available: int) -> int:
        """One per process; all for a device map."""
        return available if self.device_map is not None else self.processes


class VLLMSpeculativeConfig(RuledConfig):
    """vLLM's `speculative_config`: several tokens are drafted, then checked in one pass."""

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "medusa", "mlp_speculator", "mtp", "suffix"] | None = (
        None
    )
    """How tokens are drafted; null lets vLLM tell it from the draft model."""
    model: PathStr | None = None
    """Draft model, EAGLE head or other draft weights."""
    num_speculative_tokens: Count | None = None
    """Tokens drafted per step."""
    prompt_lookup_max: Count | None = None
    """Longest n-gram to match; needs method ngram."""
    prompt_lookup_min: Count | None = None
    """Shortest n-gram to match; needs method ngram."""
    draft_tensor_parallel_size: Count | None = None
    """GPUs the draft model is split over: 1, or the target model's number."""
    section: ClassVar[str] = "vllm.speculative_config"
    rules: ClassVar[tuple[Rule, ...]] = (
        Needs("prompt_lookup_max", when("method", "ngram")),
        Needs("prompt_lookup_min", when("method", "ngram")),
        Excludes(when("method", "ngram"), given("model"), "n-grams come from the text itself"),
    )

    def problems(self) -> Iterator[Problem]:
        """What the rules do not say: something has to draft, and the shortest n-gram is no longer than the longest."""
        yield from super().problems()
        if self.method is None and self.model is None:
            yield Problem("method", f"{self.section}: needs method or model. Set method: ngram, or name a draft model.")
        if self.prompt_lookup_max is not None and (self.prompt_lookup_min or 1) > self.prompt_lookup_max:
            yield Problem(
                "prompt_lookup_min",
                f"{self.section}.prompt_lookup_min: {self.prompt_lookup_min} exceeds "
                f"prompt_lookup_max={self.prompt_lookup_max}. Lower it.",
            )


class VLLMConfig(BackendConfig):
    """vLLM's offline engine; the fields are its engine arguments."""

    max_num_seqs: Count | None = None
    """Most sequences in one step: vLLM's batch size."""
    max_num_batched_tokens: Count | None = None
    """Most tokens in one step."""
    max_model_len: Count | None = None
    """Longest sequence, prompt and output together."""
    tensor_parallel_size: Count | None = None
    """GPUs each layer is split over."""
    pipeline_parallel_size: Count | None = None
    """GPUs the layers are dealt out to."""
    enable_expert_parallel: bool | None = None
    """Split a mixture of experts by expert instead of by tensor."""
    distributed_executor_backend: Literal["mp", "ray", "uni"] | None = None
    """What starts the workers of a parallel engine."""
    gpu_memory_utilization: float | None = Field(default=None, ge=0.1, le=1.0)
    """Share of the GPU's memory vLLM may take."""
    cpu_offload_gb: float | None = Field(default=None, ge=0.0)
    """GiB of weights per GPU that stay in host memory."""
    kv_cache_dtype: Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] | None = None
    """Number format of the key-value cache."""
    block_size: Literal[8, 16, 32, 64, 128, 256] | None = None
    """Tokens per block of the key-value cache."""
    enable_prefix_caching: bool | None = None
    """Reuse the key-value blocks of shared prompt beginnings."""
    enable_chunked_prefill: bool | None = None
    """Cut long prefills into chunks that share steps with decoding."""
    enforce_eager: bool | None = None
    """No CUDA graphs and no compilation."""
    max_cudagraph_capture_size: Count | None = None
    """Largest batch a CUDA graph is captured for; refused with enforce_eager."""
    attention_backend: (
        Literal["FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION", "FLASHMLA", "TRITON_MLA", "CPU_ATTN"]
        | None
    ) = None
    """Attention kernel."""
    disable_custom_all_reduce: bool | None = None
    """Use NCCL instead of vLLM's own all-reduce between GPUs."""
    async_scheduling: bool | None = None
    """Schedule the next step while this one runs."""
    performance_mode: Literal["balanced", "interactivity", "throughput"] | None = None
    """What vLLM tunes kernels and graphs for."""
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
    ) = None
    """Weight quantisation: that of the checkpoint, or made while loading (fp8, int8)."""
    speculative_config: VLLMSpeculativeConfig | None = None
    """Speculative decoding."""
    section: ClassVar[str] = "vllm"
    default_batch: ClassVar[int] = 256
    null_means: ClassVar[Mapping[str, Any]] = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    rules: ClassVar[tuple[Rule, ...]] = (
        Excludes(when("enforce_eager", True), given("max_cudagraph_capture_size"), "eager mode captures no graphs"),
    )

    @property
    def spans_machines(self) -> bool:
        """Whether Ray starts the workers, wherever it has GPUs."""
        return self.distributed_executor_backend == "ray"

    def gpu_count(self, available: int) -> int:
        """Those of one engine."""
        return (self.tensor_parallel_size or 1) * (self.pipeline_parallel_size or 1)


class TensorRTKVCacheConfig(RuledConfig):
    """TensorRT-LLM's `KvCacheConfig`."""

    free_gpu_memory_fraction: Fraction | None = None
    """Share of the memory left after loading that the cache may take."""
    max_tokens: Count | None = None
    """Most tokens in the cache."""
    tokens_per_block: Count | None = None
    """Tokens per block of the cache."""
    dtype: Literal["auto", "float16", "bfloat16", "fp8", "nvfp4"] | None = None
    """Number format of the cache."""
    enable_block_reuse: bool | None = None
    """Reuse the blocks of shared prompt beginnings."""
    enable_partial_reuse: bool | None = None
    """Reuse blocks that match in part; needs block reuse."""
    host_cache_size: int | None = Field(default=None, ge=0)
    """Bytes of host memory for evicted blocks."""
    section: ClassVar[str] = "tensorrt.kv_cache_config"
    rules: ClassVar[tuple[Rule, ...]] = (Needs("enable_partial_reuse", unless("enable_block_reuse", False)),)


class TensorRTSpeculativeConfig(RuledConfig):
    """TensorRT-LLM's speculative decoding: several tokens are drafted, then checked in one pass."""

    decoding_type: Literal["NGram", "Draft_Target", "Eagle3", "MTP"]
    """How tokens are drafted."""
    max_draft_len: Count | None = None
    """Most tokens drafted per step."""
    speculative_model: PathStr | None = None
    """Draft model or EAGLE head; needed by Draft_Target and Eagle3."""
    max_matching_ngram_size: Count | None = None
    """Longest n-gram to match; needs decoding_type NGram."""
    section: ClassVar[str] = "tensorrt.speculative_config"
    rules: ClassVar[tuple[Rule, ...]] = (
        Needs("max_matching_ngram_size", when("decoding_type", "NGram")),
        Needs("speculative_model", unless("decoding_type", "NGram")),
    )

    def problems(self) -> Iterator[Problem]:
        """What the rules do not say: some ways of drafting need a drafter."""
        yield from super().problems()
        if self.decoding_type in ("Draft_Target", "Eagle3") and self.speculative_model is None:
            yield Problem(
                "speculative_model",
                f"{self.section}.speculative_model: needed by {self.decoding_type!r}. Name the drafter.",
            )


class TensorRTConfig(BackendConfig):
    """TensorRT-LLM's `LLM`: both its engine-building and its PyTorch-based generation."""

    max_batch_size: Count | None = None
    """Most sequences in one step."""
    max_num_tokens: Count | None = None
    """Most tokens in one step."""
    max_seq_len: Count | None = None
    """Longest sequence, prompt and output together."""
    max_input_len: Count | None = None
    """Longest prompt; needs an engine build."""
    tp_size: Count | None = None
    """GPUs each layer is split over."""
    pp_size: Count | None = None
    """GPUs the layers are dealt out to."""
    moe_expert_parallel_size: Count | None = None
    """GPUs a mixture of experts is split over by expert."""
    quantization: Literal["int8_sq", "int4_awq", "fp8"] | None = None
    """Weight (and for int8_sq and fp8 activation) quantisation."""
    engine_path: PathStr | None = None
    """Directory of an engine that is built already; build settings are then refused."""
    kv_cache_config: TensorRTKVCacheConfig | None = None
    """Key-value cache."""
    enable_chunked_prefill: bool | None = None
    """Cut long prefills into chunks that share steps with decoding."""
    capacity_scheduler_policy: Literal["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"] | None = None
    """Which waiting requests are let into the batch."""
    batching_type: Literal["INFLIGHT", "STATIC"] | None = None
    """Continuous or static batching; needs an engine build."""
    attn_backend: Literal["TRTLLM", "FLASHINFER", "VANILLA"] | None = None
    """Attention kernel; needs the PyTorch-based engine."""
    cuda_graph: bool | None = None
    """Replay decode steps from CUDA graphs; false passes cuda_graph_config=None."""
    cuda_graph_max_batch_size: Count | None = None
    """Largest batch a CUDA graph is captured for; refused with cuda_graph false."""
    cuda_graph_enable_padding: bool | None = None
    """Round batches up to the next captured size; refused with cuda_graph false."""
    torch_compile: bool | None = None
    """Compile the model with torch.compile; needs the PyTorch-based engine."""
    disable_overlap_scheduler: bool | None = None
    """Do not schedule the next step while this one runs; needs the PyTorch-based engine."""
    speculative_config: TensorRTSpeculativeConfig | None = None
    """Speculative decoding."""
    section: ClassVar[str] = "tensorrt"
    default_batch: ClassVar[int] = 256
    null_means: ClassVar[Mapping[str, Any]] = {"tp_size": 1, "pp_size": 1}
    rules: ClassVar[tuple[Rule, ...]] = (
        Needs("cuda_graph_max_batch_size", unless("cuda_graph", False)),
        Needs("cuda_graph_enable_padding", unless("cuda_graph", False)),
        *(
            Excludes(given("engine_path"), given(name), "it is fixed when the engine is built")
            for name in ("max_input_len", "quantization", "tp_size", "pp_size", "moe_expert_parallel_size")
        ),
    )

    def gpu_count(self, available: int) -> int:
        """Those of one engine."""
        return (self.tp_size or 1) * (self.pp_size or 1)


class OtherEngineConfig(BackendConfig):
    """What is said of an engine of another package, which has no section: its settings are `passthrough_kwargs`."""

    section: ClassVar[str] = "passthrough_kwargs"
    default_batch: ClassVar[int] = 1


SECTIONS: Final[dict[str, type[BackendConfig]]] = {
    section.section: section for section in (PyTorchConfig, VLLMConfig, TensorRTConfig)
}
"""The section of each backend."""

DEFAULT_SECTIONS: Final[dict[str, BackendConfig]] = {name: section() for name, section in SECTIONS.items()}
"""Each section with nothing set; frozen, so one of each will do."""
