"""`tensorrt_llm.llmapi` of 1.2: arguments of both engines (`TorchLlmArgs`, `TrtLlmArgs`) and what is built.

They are those of the repository's `llmapi/llm_args.py` in the time of the 1.2 release candidates.
"""

from __future__ import annotations

from typing import Any, Literal

from trtllm_arguments import (
    BaseArguments,
    CapacitySchedulerPolicy,
    CudaGraphConfig,
    KvCacheConfig,
    QuantAlgo,
    SchedulerConfig,
    Strict,
    TorchCompileConfig,
)
from trtllm_arguments import TorchLlmArgs as _TorchLlmArgs

__all__ = ["CapacitySchedulerPolicy", "CudaGraphConfig", "KvCacheConfig", "QuantAlgo", "SchedulerConfig"]
__all__ += ["BuildConfig", "QuantConfig", "TorchCompileConfig", "TorchLlmArgs", "TrtLlmArgs"]


class TorchLlmArgs(_TorchLlmArgs):
    sampler_type: Literal["TRTLLMSampler", "TorchSampler", "auto"] = "auto"


class BuildConfig(Strict):
    max_input_len: int = 1024
    max_seq_len: int | None = None
    max_batch_size: int = 2048
    max_num_tokens: int = 8192


class QuantConfig(Strict):
    quant_algo: QuantAlgo | None = None


class DecodingConfig(Strict):
    max_draft_len: int | None = None
    speculative_model_dir: str | None = None


class NGramDecodingConfig(DecodingConfig):
    max_matching_ngram_size: int = 0


class DraftTargetDecodingConfig(DecodingConfig):
    pass


class EagleDecodingConfig(DecodingConfig):
    pass


class MTPDecodingConfig(DecodingConfig):
    num_nextn_predict_layers: int = 1

    def model_post_init(self, context: Any) -> None:
        self.max_draft_len = self.num_nextn_predict_layers


class TrtLlmArgs(BaseArguments):
    workspace: str | None = None
    enable_build_cache: Any = False
    quant_config: QuantConfig | None = None
    build_config: BuildConfig | None = None
    batching_type: str | None = None
