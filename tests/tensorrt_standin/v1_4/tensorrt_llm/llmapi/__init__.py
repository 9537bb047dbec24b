"""`tensorrt_llm.llmapi` of 1.4: no builder, `speculative_model` in the place of `speculative_model_dir`.

Arguments are those of the repository's `llmapi/llm_args.py` of 2026 (`BaseLlmArgs`, `TorchLlmArgs`), without
`sampler_type`, which pull request 18232 took away ahead of 1.4: its one sampler has seeds of requests since 17172.
"""

from __future__ import annotations

from typing import Any

from trtllm_arguments import (
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
__all__ += ["TorchCompileConfig", "TorchLlmArgs"]


class TorchLlmArgs(_TorchLlmArgs):
    enable_energy_metrics: bool = False


class DecodingConfig(Strict):
    max_draft_len: int | None = None
    speculative_model: str | None = None


class NGramDecodingConfig(DecodingConfig):
    max_matching_ngram_size: int = 2


class DraftTargetDecodingConfig(DecodingConfig):
    pass


class Eagle3DecodingConfig(DecodingConfig):
    pass


class MTPDecodingConfig(DecodingConfig):
    num_nextn_predict_layers: int | None = None

    def model_post_init(self, context: Any) -> None:
        self.max_draft_len = self.num_nextn_predict_layers
