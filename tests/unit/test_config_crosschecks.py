"""Combinations that cannot run are refused, all at once, with field, value and fix."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.ssot import DECODER_PARAM_SUPPORT, PRECISION_SUPPORT


def _refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({"model": "gpt2", **fields})
    return "\n".join(error["msg"] for error in caught.value.errors())


def test_a_section_of_another_backend_is_refused_in_the_agreed_words() -> None:
    assert _refusal(vllm={}) == (
        "vllm: config section provided but backend='pytorch'. Remove the vllm: section or set backend: vllm."
    )


@pytest.mark.parametrize("backend", ["pytorch", "vllm", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_precision_follows_the_support_table(backend: str, precision: str) -> None:
    if precision in PRECISION_SUPPORT[backend]:
        assert ExperimentConfig.model_validate({"model": "m", "backend": backend, "precision": precision})
    else:
        message = _refusal(backend=backend, precision=precision)
        assert f"precision: {precision!r}" in message
        assert ", ".join(PRECISION_SUPPORT[backend]) in message


@pytest.mark.parametrize("backend", ["pytorch", "vllm", "tensorrt"])
def test_repetition_penalty_follows_the_support_table(backend: str) -> None:
    fields = {"backend": backend, "decoder": {"repetition_penalty": 1.2}}
    if "repetition_penalty" in DECODER_PARAM_SUPPORT[backend]:
        assert ExperimentConfig.model_validate({"model": "m", **fields})
    else:
        assert "decoder.repetition_penalty: 1.2 is not supported by backend='tensorrt'" in _refusal(**fields)


def test_a_preset_is_checked_like_the_values_it_stands_for() -> None:
    assert "decoder.repetition_penalty: 1.1" in _refusal(backend="tensorrt", decoder={"preset": "creative"})


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.7), ("top_k", 10), ("top_p", 0.9), ("min_p", 0.1)])
def test_a_sampling_parameter_without_sampling_would_be_ignored_and_is_refused(name: str, value: float) -> None:
    assert f"decoder.{name}: {value} has no effect" in _refusal(decoder={"do_sample": False, name: value})


def test_temperature_zero_is_the_limit_of_sampling_and_takes_any_filter() -> None:
    assert ExperimentConfig.model_validate({"model": "m", "decoder": {"temperature": 0.0, "top_p": 0.9, "top_k": 5}})


def test_output_cannot_be_forced_beyond_its_limit() -> None:
    assert (
        ExperimentConfig.model_validate(
            {"model": "m", "max_output_tokens": 32, "decoder": {"min_new_tokens": 32}}
        ).decoder.min_new_tokens
        == 32
    )
    assert "decoder.min_new_tokens: 33 exceeds max_output_tokens=32" in _refusal(
        max_output_tokens=32, decoder={"min_new_tokens": 33}
    )


def test_passthrough_keys_that_are_fields_are_refused_in_the_agreed_words() -> None:
    assert _refusal(passthrough_kwargs={"model": "x", "rope_scaling": None}) == (
        "passthrough_kwargs keys collide with ExperimentConfig fields: ['model']. Use the named fields instead."
    )


def test_passthrough_may_set_an_engine_option_but_not_one_the_section_sets_too() -> None:
    passed = {"attn_implementation": "eager"}
    assert ExperimentConfig.model_validate({"model": "m", "passthrough_kwargs": passed}).passthrough_kwargs == passed
    assert "already set in the pytorch: section: ['attn_implementation']" in _refusal(
        pytorch={"attn_implementation": "sdpa"}, passthrough_kwargs=passed
    )


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), (1, 2), {0: "x"}, b"x"])
def test_passthrough_values_are_what_json_can_hold(value: Any) -> None:
    assert "passthrough_kwargs.key" in _refusal(passthrough_kwargs={"key": value})


def test_an_adapter_on_tensorrt_is_refused_with_the_merge_advice() -> None:
    message = _refusal(backend="tensorrt", lora={"adapter_id": "a/b"})
    assert "lora: not supported with backend='tensorrt'" in message
    assert "Merge" in message


def test_tf32_needs_fp32() -> None:
    assert ExperimentConfig.model_validate({"model": "m", "precision": "fp32", "pytorch": {"allow_tf32": True}})
    assert "pytorch.allow_tf32" in _refusal(precision="bf16", pytorch={"allow_tf32": True})


def test_every_problem_is_reported_at_once() -> None:
    message = _refusal(
        backend="vllm",
        precision="fp32",
        pytorch={},
        decoder={"do_sample": False, "top_k": 3, "min_new_tokens": 999},
        passthrough_kwargs={"n": 1},
    )
    for part in ("precision", "pytorch:", "decoder.top_k", "decoder.min_new_tokens", "passthrough_kwargs"):
        assert part in message


@pytest.mark.parametrize(
    ("backend", "section", "message"),
    [
        ("pytorch", {"load_in_4bit": True, "load_in_8bit": True}, "pytorch.load_in_8bit"),
        ("pytorch", {"bnb_4bit_quant_type": "nf4"}, "pytorch.bnb_4bit_quant_type"),
        ("pytorch", {"load_in_4bit": False, "bnb_4bit_quant_type": "nf4"}, "pytorch.bnb_4bit_quant_type"),
        ("pytorch", {"torch_compile_mode": "default"}, "pytorch.torch_compile_mode"),
        ("pytorch", {"use_cache": False, "cache_implementation": "static"}, "pytorch.cache_implementation"),
        ("pytorch", {"prompt_lookup_num_tokens": 4, "batch_size": 2}, "pytorch.prompt_lookup_num_tokens"),
        ("pytorch", {"assistant_model": "m", "num_beams": 2}, "pytorch.assistant_model"),
        ("pytorch", {"num_assistant_tokens": 4}, "pytorch.num_assistant_tokens"),
        ("pytorch", {"device": "cpu", "device_map": "auto"}, "pytorch.device_map"),
        ("pytorch", {"num_processes": 2, "device_map": "auto"}, "pytorch.device_map"),
        ("vllm", {"enforce_eager": True, "max_cudagraph_capture_size": 8}, "vllm.max_cudagraph_capture_size"),
        ("vllm", {"speculative_config": {}}, "vllm.speculative_config"),
        ("vllm", {"speculative_config": {"method": "ngram", "model": "m"}}, "vllm.speculative_config.model"),
        ("vllm", {"speculative_config": {"model": "m", "prompt_lookup_max": 4}}, "prompt_lookup_max"),
        (
            "vllm",
            {"speculative_config": {"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 4}},
            "prompt_lookup_min: 5 exceeds prompt_lookup_max=4",
        ),
        ("tensorrt", {"engine_path": "/e", "tp_size": 2}, "tensorrt.tp_size"),
        ("tensorrt", {"cuda_graph": False, "cuda_graph_max_batch_size": 2}, "tensorrt.cuda_graph_max_batch_size"),
        ("tensorrt", {"speculative_config": {"decoding_type": "Eagle3"}}, "speculative_model: needed by 'Eagle3'"),
        (
            "tensorrt",
            {"kv_cache_config": {"enable_block_reuse": False, "enable_partial_reuse": True}},
            "tensorrt.kv_cache_config.enable_partial_reuse",
        ),
    ],
)
def test_a_setting_that_would_be_ignored_or_contradicted_is_refused(
    backend: str, section: dict[str, Any], message: str
) -> None:
    assert message in _refusal(backend=backend, **{backend: section})


@pytest.mark.parametrize(
    ("backend", "section"),
    [
        ("pytorch", {"torch_compile": True, "torch_compile_mode": "max-autotune", "cache_implementation": "static"}),
        ("pytorch", {"load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}),
        ("pytorch", {"assistant_model": "m", "num_assistant_tokens": 4, "batch_size": 1, "num_beams": 1}),
        ("vllm", {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}}),
        ("vllm", {"speculative_config": {"model": "draft/model", "num_speculative_tokens": 3}}),
        ("tensorrt", {"engine_path": "/e", "kv_cache_config": {"free_gpu_memory_fraction": 0.8}}),
        ("tensorrt", {"cuda_graph_max_batch_size": 8, "quantization": "fp8", "tp_size": 2}),
    ],
)
def test_settings_that_go_together_are_accepted(backend: str, section: dict[str, Any]) -> None:
    assert ExperimentConfig.model_validate({"model": "m", "backend": backend, backend: section})


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_in_fp32_is_an_error_of_the_config(kernel: str) -> None:
    section = {"attn_implementation": kernel}
    with pytest.raises(ValidationError, match=f"{kernel} has no fp32 kernels"):
        ExperimentConfig.model_validate({"model": "m", "precision": "fp32", "pytorch": section})
    assert ExperimentConfig.model_validate({"model": "m", "precision": "bf16", "pytorch": section})
