"""Every setting of the vllm section, read back from the engine's own config, or refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.config.backend_configs import VLLMConfig
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.exceptions import BackendError
from vllm_models import NEEDS_VLLM, backend, experiment, loaded, save_wide_model

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0}
    return save_wide_model(tmp_path_factory.mktemp("mixtral"), model_type="mixtral", **experts)


def engine_config(config: ExperimentConfig) -> Any:
    """What vLLM makes of the arguments that an experiment gives it, before anything is loaded."""
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    from llenergymeasure.core.backends.vllm.engine import engine_arguments
    from llenergymeasure.core.model.source import find_model

    source = find_model(config.model, None, cache_home=None)
    return EngineArgs(**engine_arguments(config, source, None)).create_engine_config(UsageContext.LLM_CLASS)


def settings_of(config: ExperimentConfig) -> dict[str, Any]:
    from llenergymeasure.core.backends.vllm.engine import read_back

    return read_back(engine_config(config))


VALUES: dict[str, Any] = {
    "max_num_seqs": 3,
    "max_num_batched_tokens": 700,
    "max_model_len": 200,
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "gpu_memory_utilization": 0.5,
    "cpu_offload_gb": 1.0,
    "kv_cache_dtype": "fp8_e5m2",
    "block_size": 32,
    "enable_prefix_caching": False,
    "enable_chunked_prefill": False,
    "enforce_eager": False,
    "max_cudagraph_capture_size": 8,
    "attention_backend": "FLASHINFER",
    "disable_custom_all_reduce": True,
    "async_scheduling": False,
    "performance_mode": "throughput",
    "speculative_config": {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 4,
        "prompt_lookup_min": 2,
    },
}
"""A value of each field that the engine would not have chosen by itself, where it has a choice."""

ELSEWHERE = {"enable_expert_parallel", "quantization"}
"""Fields that have a test of their own."""


def test_every_field_is_tried() -> None:
    assert set(VALUES) | ELSEWHERE == set(VLLMConfig.model_fields)


@pytest.mark.parametrize("name", VALUES)
def test_every_field_arrives_in_the_engines_own_config(model: Path, name: str) -> None:
    eager = {"enforce_eager": False} if name == "max_cudagraph_capture_size" else {}
    found = settings_of(experiment(model, vllm={**eager, name: VALUES[name]}))[f"vllm.{name}"]
    if isinstance(found, dict):
        found = {key: found[key] for key in VALUES[name]}
    assert found == VALUES[name]


def test_every_field_is_read_back() -> None:
    from llenergymeasure.core.backends.vllm.engine import READ_BACK

    assert set(READ_BACK) == set(VLLMConfig.model_fields)


def test_expert_parallelism_arrives_and_needs_experts(mixture: Path, model: Path) -> None:
    section = {"enable_expert_parallel": True}
    assert settings_of(experiment(mixture, vllm=section))["vllm.enable_expert_parallel"] is True
    (problem,) = backend().preflight(experiment(model, vllm=section))
    assert problem.startswith("vLLM refuses these settings: Number of experts")


def test_a_draft_model_arrives_with_its_settings(model: Path, tmp_path: Path) -> None:
    drafter = save_wide_model(tmp_path, num_hidden_layers=1)
    section = {"model": str(drafter), "num_speculative_tokens": 2, "draft_tensor_parallel_size": 1}
    found = settings_of(experiment(model, vllm={"speculative_config": section}))["vllm.speculative_config"]
    assert {name: found[name] for name in section} == section
    missing = {"model": str(tmp_path / "gone"), "num_speculative_tokens": 2}
    (problem,) = backend().preflight(experiment(model, vllm={"speculative_config": missing}))
    assert problem.startswith("vllm.speculative_config.model: no such directory")


def test_weights_are_quantised_while_loading(model: Path) -> None:
    section = {"quantization": "int8_per_channel_weight_only"}
    with loaded(experiment(model, vllm=section, passthrough_kwargs={"dtype": "bfloat16"})) as engine:
        assert engine.describe().settings["vllm.quantization"] == section["quantization"]
        assert engine.describe().settings["precision"] == "bf16"
        (output,) = engine.generate([GenerationRequest(0, (2, 3, 4), 5, 5)]).requests
    assert output.output_tokens == 5


@pytest.mark.parametrize(("quantization", "said"), [("awq", "is the format of a checkpoint"), ("gptq", "gptq")])
def test_a_format_that_the_checkpoint_is_not_in_is_found_before_loading(
    model: Path, quantization: str, said: str
) -> None:
    (problem,) = backend().preflight(experiment(model, vllm={"quantization": quantization}))
    assert problem.startswith("vllm.quantization:")
    assert said in problem


def test_what_was_loaded_is_told_from_the_engine_itself(model: Path) -> None:
    with loaded(experiment(model, vllm={"block_size": 64})) as engine:
        found = engine.describe()
        assert engine.llm.llm_engine.vllm_config.cache_config.block_size == 64
    assert found.settings["precision"] == "fp32"
    assert found.settings["vllm.block_size"] == 64
    assert found.settings["vllm.max_num_seqs"] == 4
    assert found.settings["vllm.attention_backend"] == "CPU_ATTN"
    assert found.settings["vllm.engine_process"] == "in-process"
    assert found.settings["architecture"] == "LlamaForCausalLM"
    assert (found.context_length, found.device_names, found.specialisation.rows) == (256, ("CPU",), 4)


def test_an_engine_that_chose_otherwise_is_refused_and_leaves_nothing_loaded(model: Path) -> None:
    engine = backend()
    with pytest.raises(BackendError, match=r"vllm.attention_backend: vLLM took 'CPU_ATTN' for 'FLASHINFER'"):
        engine.load(experiment(model, vllm={"attention_backend": "FLASHINFER"}))
    with pytest.raises(BackendError, match="no model loaded"):
        engine.generate([GenerationRequest(0, (2,), 1)])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "torch.bfloat16"), ("fp16", "torch.float16")])
def test_precision_is_the_type_of_the_weights(model: Path, precision: str, dtype: str) -> None:
    config = ExperimentConfig(model=str(model), backend="vllm", precision=precision)
    assert str(engine_config(config).model_config.dtype) == dtype


def test_passthrough_arguments_reach_the_engine(model: Path) -> None:
    found = engine_config(experiment(model, passthrough_kwargs={"scheduling_policy": "priority", "max_logprobs": 7}))
    assert (found.scheduler_config.policy, found.model_config.max_logprobs) == ("priority", 7)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"model": "x"}, "set by model"),
        ({"seed": 1}, "set by random_seed"),
        ({"enable_lora": True}, "set by lora"),
        ({"generation_config": "auto"}, "set by decoder"),
        ({"data_parallel_size": 2}, "refused by vLLM's offline engine"),
        ({"no_such_thing": 1}, "EngineArgs has no such argument"),
    ],
)
def test_passthrough_arguments_of_others_and_unknown_ones_are_refused(
    model: Path, kwargs: dict[str, Any], said: str
) -> None:
    (key,) = kwargs
    if key == "model":  # that one the config refuses itself
        with pytest.raises(ValueError, match="collide"):
            experiment(model, passthrough_kwargs=kwargs)
        return
    config = experiment(model, passthrough_kwargs=kwargs)
    (problem,) = backend().preflight(config)
    assert problem.startswith(f"passthrough_kwargs.{key}:")
    assert said in problem
    with pytest.raises(BackendError, match=rf"passthrough_kwargs.{key}:"):
        backend().load(config)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vllm": {"max_model_len": 40}}, "vllm.max_model_len: 40 is less than max_input_tokens"),
        ({"vllm": {"tensor_parallel_size": 3}}, "attention heads"),
        ({"decoder": {"top_p": 0.0}}, "decoder.top_p: vLLM takes values above 0"),
        ({"decoder": {"temperature": 0.001}}, "decoder.temperature: vLLM raises 0.001 to 0.01"),
        ({"lora": {"adapter_path": "/nowhere"}}, "lora.adapter_path: no such directory"),
    ],
)
def test_what_cannot_run_is_found_before_loading(model: Path, fields: dict[str, Any], said: str) -> None:
    (problem,) = backend().preflight(experiment(model, **fields))
    assert said in problem


def test_a_good_experiment_has_no_problem(model: Path) -> None:
    engine = backend()
    assert engine.preflight(experiment(model)) == []
    assert engine.plan_devices(experiment(model)) == ("cpu",)


def test_devices_are_the_first_that_cuda_shows_and_there_must_be_enough(model: Path) -> None:
    from llenergymeasure.core.backends.vllm.preflight import Platform, planned_devices

    two = experiment(model, vllm={"tensor_parallel_size": 2})
    cuda = Platform("cuda", ("GPU-a", "GPU-b", "GPU-c"))
    assert planned_devices(two, cuda, "0.32.0") == ("GPU-a", "GPU-b")
    with pytest.raises(BackendError, match=r"2 GPUs are asked for, and 1 are visible"):
        planned_devices(two, replace(cuda, gpus=("GPU-a",)), "0.32.0")
    with pytest.raises(BackendError, match=r"no CUDA GPU is available to vLLM 0.32.0, which is not its CPU build"):
        planned_devices(two, Platform(""), "0.32.0")
    with pytest.raises(BackendError, match=r"vLLM runs on xpu here"):
        planned_devices(two, Platform("xpu"), "0.32.0")


def test_flags_of_its_server_are_told_as_the_settings_that_stand_for_them() -> None:
    from llenergymeasure.core.backends.vllm.engine import in_our_words

    told = "decrease `--gpu-memory-utilization` (e.g. `--gpu-memory-utilization 0.5`), or see --trust-remote-code"
    assert in_our_words(told) == (
        "decrease `vllm.gpu_memory_utilization` (e.g. `vllm.gpu_memory_utilization 0.5`), or see --trust-remote-code"
    )
