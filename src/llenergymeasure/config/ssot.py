"""What each backend supports, said once: validators, introspection and help text read these tables."""

from __future__ import annotations

from typing import Final

BACKENDS: Final[list[str]] = ["pytorch", "vllm", "tensorrt"]
"""Inference engines that have a section of the same name in a config."""

BACKENDS_GROUP: Final = "llenergymeasure.backends"
"""Entry-point group in which an installed package registers an engine under the name that configs use."""

ENERGY_BACKENDS: Final[list[str]] = ["nvml", "zeus", "codecarbon", "rapl"]
"""Meters of this package."""

ENERGY_GROUP: Final = "llenergymeasure.energy"
"""Entry-point group in which an installed package registers a meter under the name that configs use."""

PRECISION_SUPPORT: Final[dict[str, list[str]]] = {
    "pytorch": ["fp32", "fp16", "bf16"],
    "vllm": ["fp16", "bf16"],
    "tensorrt": ["fp16", "bf16"],
}

DECODING_SUPPORT: Final[dict[str, list[str]]] = {
    "pytorch": ["greedy", "sampling"],
    "vllm": ["greedy", "sampling"],
    "tensorrt": ["greedy", "sampling"],
}

DECODER_PARAM_SUPPORT: Final[dict[str, list[str]]] = {
    "pytorch": ["temperature", "top_k", "top_p", "min_p", "min_new_tokens", "repetition_penalty"],
    "vllm": ["temperature", "top_k", "top_p", "min_p", "min_new_tokens", "repetition_penalty"],
    "tensorrt": ["temperature", "top_k", "top_p", "min_p", "min_new_tokens"],
}

LORA_SUPPORT: Final[list[str]] = ["pytorch", "vllm"]
"""Backends that load an adapter beside the weights; the others need it merged into them first."""

CONTINUOUS_BATCHING: Final[list[str]] = ["vllm", "tensorrt"]
"""Backends that refill a batch while it runs, so that there is a time in which it is full."""

BATCH_SIZE_FIELD: Final[dict[str, str]] = {
    "pytorch": "pytorch.batch_size",
    "vllm": "vllm.max_num_seqs",
    "tensorrt": "tensorrt.max_batch_size",
}
"""The field that `--batch-size` means on each backend."""

BATCH_SIZE_OVERRIDE: Final = "batch_size"
"""Override key that means the batch setting of whichever backend is chosen (`--batch-size`)."""

DECODER_PRESETS: Final[dict[str, dict[str, float | bool]]] = {
    "deterministic": {"temperature": 0.0, "do_sample": False},
    "standard": {"temperature": 1.0, "top_p": 0.95},
    "creative": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1},
    "factual": {"temperature": 0.3},
}
"""Decoder fields that each `decoder.preset` fills where the user left them out."""

SECRET_NAMES: Final[frozenset[str]] = frozenset(
    {"token", "hf_token", "use_auth_token", "auth_token", "access_token", "api_key", "password", "secret"}
)
"""Keyword arguments that hold a secret where they are text; a config is published, so it holds none."""

OTHER_NAMES: Final[dict[str, str]] = {
    "num_input_prompts": "n",
    "num_prompts": "n",
    "n_prompts": "n",
    "num_samples": "n",
    "num_requests": "n",
    "prompts": "n",
    "max_new_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "seed": "random_seed",
    "dtype": "precision",
    "torch_dtype": "precision",
    "fp_precision": "precision",
    "model_name": "model",
    "model_id": "model",
    "engine": "backend",
    "framework": "backend",
    "greedy": "decoder.do_sample",
}
"""What other tools call some of the fields; for suggestions only, nobody may write them."""

OTHER_VALUES: Final[dict[str, str]] = {
    "gpu": "cuda",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float": "fp32",
    "float32": "fp32",
    "transformers": "pytorch",
    "huggingface": "pytorch",
    "hf": "pytorch",
    "torch": "pytorch",
    "trt": "tensorrt",
    "trtllm": "tensorrt",
    "tensorrt-llm": "tensorrt",
    "tensorrt_llm": "tensorrt",
    "flash_attention": "flash_attention_2",
    "flash": "flash_attention_2",
}
"""Likewise, what they call some of the values."""
