"""A stand-in for tensorrt_llm 1.2: the PyTorch-based `LLM`; `_tensorrt_engine` has the one that builds engines.

`generate_async` is that of the repository's `llmapi/llm.py` in the time of the 1.2 release candidates.
"""

from __future__ import annotations

from typing import Any

from trtllm_standin import RequestOutput, SamplingParams, StandInLLM

from tensorrt_llm import llmapi

__version__ = "1.2.1"
__all__ = ["LLM", "RequestOutput", "SamplingParams", "llmapi"]

print(f"[TensorRT-LLM] TensorRT-LLM version: {__version__}")


class LLM(StandInLLM):
    arguments_class = llmapi.TorchLlmArgs

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        return self._generate_async(inputs, sampling_params, streaming, cache_salt)
