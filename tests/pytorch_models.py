"""Small models with random weights, saved as `save_pretrained` does it, for tests of the real engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest
from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend
from llenergymeasure.core.clock import SystemClock

BOS, EOS = 0, 1
VOCABULARY = 258  # all bytes, BOS and EOS
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.5,  # far from uniform, so that greedy texts differ between prompts
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte, without a padding token, as many real tokenizers are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def save_model(directory: Path, seed: int = 0, *, tokenizer: bool = True, **overrides: Any) -> Path:
    """Save a model with random weights (a Llama unless told otherwise) and its tokenizer; returns the directory."""
    settings = {**LLAMA, **overrides}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    if tokenizer:
        byte_tokenizer().save_pretrained(directory)
    return directory


def save_adapter(directory: Path, base: Path, **settings: object) -> Path:
    """A LoRA adapter with weights large enough to change every text."""
    import peft

    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(directory)
    return directory


def experiment(model: Path | str, **fields: Any) -> ExperimentConfig:
    """A short greedy experiment on the CPU in fp32; `pytorch` fields are added to `device: cpu`."""
    fields["pytorch"] = {"device": "cpu", **fields.get("pytorch", {})}
    settings = {"precision": "fp32", "max_input_tokens": 64, "max_output_tokens": 16, "decoder": {"temperature": 0}}
    return ExperimentConfig(model=str(model), **{**settings, **fields})


@contextmanager
def loaded(config: ExperimentConfig) -> Iterator[PyTorchBackend]:
    """The real engine with `config` loaded."""
    engine = PyTorchBackend(SystemClock())
    engine.load(config)
    try:
        yield engine
    finally:
        engine.unload()


def requests(*texts: str, limits: Sequence[int] = (16,), minimum: int = 0) -> list[GenerationRequest]:
    """One request per text, one id per byte; limits are taken in turn."""
    tokenizer = byte_tokenizer()
    return [
        GenerationRequest(index, tuple(tokenizer(text)["input_ids"]), limits[index % len(limits)], minimum)
        for index, text in enumerate(texts)
    ]


def ids(output: GenerationOutput) -> list[list[int]]:
    """The produced ids of every request."""
    return [list(request.token_ids) for request in output.requests]
