"""A stand-in for tensorrt_llm 1.4: the PyTorch-based `LLM` alone.

`generate_async` is that of the repository's `llmapi/llm.py` in the time of the 1.3 release candidates.
"""

from __future__ import annotations

from typing import Any

from trtllm_standin import RequestOutput, SamplingParams, StandInLLM

from tensorrt_llm import llmapi

__version__ = "1.4.0rc1"
__all__ = ["LLM", "RequestOutput", "SamplingParams", "llmapi"]

print(f"[TensorRT-LLM] TensorRT-LLM version: {__version__}")


class LLM(StandInLLM):
    arguments_class = llmapi.TorchLlmArgs
    tells_every_token = True

    def get_kv_cache_capacity(self) -> dict[str, int]:
        tokens, size = 8192, self.args.kv_cache_config.tokens_per_block
        return {"maxNumBlocks": tokens // size, "tokensPerBlock": size, "maxNumTokens": tokens}

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        trace_headers: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        conversation_params: Any = None,
        cache_salt: str | None = None,
        priority: float = 0.5,
    ) -> RequestOutput:
        return self._generate_async(inputs, sampling_params, streaming, cache_salt)
