"""Every setting of the pytorch section, read back from the loaded engine, or refused with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llenergymeasure.config.backend_configs import PyTorchConfig  # noqa: E402
from llenergymeasure.core.backends.checks import EngineHost, combination_problems  # noqa: E402
from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend  # noqa: E402
from llenergymeasure.core.backends.pytorch.compiling import is_compiled  # noqa: E402
from llenergymeasure.core.backends.pytorch.loading import compile_arguments, loader_arguments  # noqa: E402
from llenergymeasure.core.backends.pytorch.preflight import CHECKS, Placement, choose_placement  # noqa: E402
from llenergymeasure.core.clock import SystemClock  # noqa: E402
from llenergymeasure.core.model.source import ModelSource  # noqa: E402
from llenergymeasure.exceptions import BackendError  # noqa: E402
from pytorch_models import EOS, experiment, ids, loaded, requests, save_model  # noqa: E402

GPU = Placement("cuda:0", (0,))
CPU = Placement("cpu", ())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


def problems(model: Path | str, placement: Placement, *installed: str, **fields: Any) -> list[str]:
    source = ModelSource(str(model), config={"model_type": "llama"})
    host = EngineHost(source, placement.on_gpu, installed.__contains__, import_failure=lambda package: None)
    return combination_problems(experiment(model, **fields), host, CHECKS)


def test_every_field_of_the_section_has_a_test_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    missing = [name for name in PyTorchConfig.model_fields if f'"{name}"' not in source]
    assert missing == []


# --- what from_pretrained gets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_precision_is_the_type_of_every_weight(model: Path, precision: str, dtype: torch.dtype) -> None:
    with loaded(experiment(model, precision=precision)) as engine:
        assert {parameter.dtype for parameter in engine.parts.model.parameters()} == {dtype}
        assert engine.describe().settings["precision"] == precision


@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flex_attention"])
def test_attention_kernel_reaches_the_model(model: Path, kernel: str) -> None:
    with loaded(experiment(model, pytorch={"attn_implementation": kernel})) as engine:
        assert engine.parts.model.config._attn_implementation == kernel
        assert engine.describe().settings["pytorch.attn_implementation"] == kernel


@pytest.mark.parametrize(
    ("kernel", "package"), [("flash_attention_2", "flash_attn"), ("flash_attention_3", "flash_attn_interface")]
)
def test_flash_attention_needs_its_package_a_gpu_and_half_precision(model: Path, kernel: str, package: str) -> None:
    section = {"attn_implementation": kernel}
    assert problems(model, GPU, package, precision="bf16", pytorch=section | {"device": "cuda"}) == []
    found = " ".join(problems(model, CPU, precision="bf16", pytorch=section))
    assert f"{kernel} needs a CUDA GPU" in found
    assert f"{kernel}: needs {package} or kernels, which is not installed" in found
    with pytest.raises(ValueError, match="has no fp32 kernels"):
        experiment(model, precision="fp32", pytorch=section)


def test_passthrough_arguments_reach_the_model(model: Path) -> None:
    with loaded(experiment(model, passthrough_kwargs={"rms_norm_eps": 0.25})) as engine:
        assert engine.parts.model.config.rms_norm_eps == 0.25
        assert engine.parts.model.model.norm.variance_epsilon == 0.25


def test_passthrough_arguments_change_what_the_model_computes(model: Path) -> None:
    with loaded(experiment(model)) as plain, loaded(experiment(model, passthrough_kwargs={"rms_norm_eps": 9.0})) as odd:
        assert ids(plain.generate(requests("the quick"))) != ids(odd.generate(requests("the quick")))


def test_an_argument_the_model_does_not_take_is_an_error_that_names_it(model: Path) -> None:
    with pytest.raises(BackendError, match=r"passthrough_kwargs sent along: no_such_thing"):
        PyTorchBackend(SystemClock()).load(experiment(model, passthrough_kwargs={"no_such_thing": 1}))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", "device_map", "config", "state_dict"])
def test_passthrough_may_not_set_what_a_field_sets(model: Path, key: str) -> None:
    config = experiment(model, passthrough_kwargs={key: "auto"})
    with pytest.raises(BackendError, match=rf"passthrough_kwargs.{key}: set by"):
        PyTorchBackend(SystemClock()).load(config)
    assert any(f"passthrough_kwargs.{key}" in problem for problem in PyTorchBackend(SystemClock()).preflight(config))


# --- quantisation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["load_in_4bit", "load_in_8bit"])
def test_quantisation_needs_bitsandbytes(model: Path, field: str) -> None:
    assert problems(model, GPU, "bitsandbytes", pytorch={field: True, "device": "cuda"}) == []
    assert problems(model, CPU, "bitsandbytes", pytorch={field: True}) == []
    (found,) = problems(model, CPU, pytorch={field: True})
    assert found.startswith(f"pytorch.{field}: needs bitsandbytes, which is not installed")


@pytest.mark.parametrize(("field", "dtype"), [("load_in_8bit", torch.int8), ("load_in_4bit", torch.uint8)])
def test_quantised_weights_are_in_memory_and_generate(model: Path, field: str, dtype: torch.dtype) -> None:
    pytest.importorskip("bitsandbytes", reason="weights are quantised with bitsandbytes, which is not installed")
    with loaded(experiment(model, precision="bf16")) as engine:
        plain, plain_mb = engine.describe(), engine.memory().model_mb
    with loaded(experiment(model, precision="bf16", pytorch={field: True})) as engine:
        assert engine.parts.model.model.layers[0].mlp.up_proj.weight.dtype is dtype
        found = engine.describe()
        assert found.settings[f"pytorch.{field}"] is True
        assert found.parameters.params == plain.parameters.params  # what is multiplied stays as large as it was
        assert engine.memory().model_mb < plain_mb
        assert len(ids(engine.generate(requests("abc", limits=[4], minimum=4)))[0]) == 4


def test_a_quantised_checkpoint_is_not_quantised_again(model: Path) -> None:
    source = ModelSource(str(model), config={"quantization_config": {"quant_method": "gptq"}})
    config = experiment(model, pytorch={"load_in_4bit": True, "device": "cuda"})
    found = combination_problems(config, EngineHost(source, True, lambda package: True), CHECKS)
    assert f"pytorch.load_in_4bit: {model} is quantised already. Remove load_in_4bit." in found


def test_quantisation_details_reach_the_quantiser(model: Path) -> None:
    details = {
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }
    config = experiment(model, pytorch={"load_in_4bit": True, **details})
    quantiser = loader_arguments(config, GPU)["quantization_config"]
    assert quantiser.load_in_4bit
    assert quantiser.bnb_4bit_compute_dtype is torch.bfloat16
    assert quantiser.bnb_4bit_quant_type == "nf4"
    assert quantiser.bnb_4bit_use_double_quant
    only_4bit = loader_arguments(experiment(model, pytorch={"load_in_4bit": True}), GPU)["quantization_config"]
    assert only_4bit.bnb_4bit_quant_type == "fp4"  # unset: the library's own default


# --- devices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "gpus", "expected"),
    [
        ({}, 2, Placement("cuda:0", (0,))),
        ({"device": "cuda"}, 1, Placement("cuda:0", (0,))),
        ({"device": "auto"}, 1, Placement("cuda:0", (0,))),
        ({"device": "auto"}, 0, CPU),
        ({"device": "cpu"}, 4, CPU),
        ({"device_map": "auto"}, 3, Placement("auto", (0, 1, 2))),
        ({"device": "auto", "device_map": "balanced"}, 2, Placement("balanced", (0, 1))),
    ],
)
def test_device_says_where_the_model_goes(section: dict[str, Any], gpus: int, expected: Placement) -> None:
    assert choose_placement(PyTorchConfig(**section), gpus) == expected


@pytest.mark.parametrize("device", [None, "cuda"])
def test_without_a_gpu_the_way_to_the_cpu_is_told(device: Any) -> None:
    with pytest.raises(BackendError, match=r"pass --device cpu or set pytorch.device: cpu"):
        choose_placement(PyTorchConfig(device=device), 0)


def test_gpus_that_cannot_be_metered_are_refused_by_name() -> None:
    with pytest.raises(BackendError, match="ROCm"):
        choose_placement(PyTorchConfig(), 1, rocm=True)
    with pytest.raises(BackendError, match=r"Apple GPUs \(MPS\)"):
        choose_placement(PyTorchConfig(), 0, apple=True)


def test_a_device_map_without_gpus_is_refused() -> None:
    with pytest.raises(BackendError, match=r"pytorch.device_map: 'auto' spreads the model over GPUs"):
        choose_placement(PyTorchConfig(device="auto", device_map="auto"), 0)


def test_on_the_cpu_planned_and_used_device_are_the_cpu(model: Path) -> None:
    config = experiment(model)
    with loaded(config) as engine:
        assert engine.plan_devices(config) == ("cpu",)
        assert engine.devices() == ("cpu",)
        assert engine.describe().settings["pytorch.device"] == "cpu"
        assert not hasattr(engine.parts.model, "_hf_hook")  # one device: accelerate must not sit in every call


def test_num_processes_share_nothing_here_each_process_loads_its_own_copy(model: Path) -> None:
    with loaded(experiment(model, pytorch={"num_processes": 2})) as engine:
        assert engine.devices() == ("cpu",)


# --- generation --------------------------------------------------------------------------------------------------


def test_batch_size_is_what_the_engine_asks_for(model: Path) -> None:
    with loaded(experiment(model)) as engine:
        assert engine.batch_size == 1
    with loaded(experiment(model, pytorch={"batch_size": 6})) as engine:
        assert engine.batch_size == 6
        rows: list[int] = []
        engine.parts.model.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
        )
        engine.generate(requests("a", "b", "c", "d", limits=[2]))
        assert set(rows) == {4}


@pytest.mark.parametrize(
    ("field", "value", "default"),
    [
        ("use_cache", False, True),
        ("cache_implementation", "static", "dynamic"),
        ("num_beams", 2, 1),
        ("prompt_lookup_num_tokens", 3, None),
    ],
)
def test_generation_fields_reach_the_generation_config(model: Path, field: str, value: Any, default: Any) -> None:
    with loaded(experiment(model, pytorch={field: value})) as engine:
        assert getattr(engine.parts.model.generation_config, field) == value
        assert engine.describe().settings[f"pytorch.{field}"] == value
        engine.generate(requests("abc", limits=[3]))
    with loaded(experiment(model)) as engine:
        assert engine.describe().settings.get(f"pytorch.{field}") == default


def test_ngram_size_reaches_the_generation_config(model: Path) -> None:
    with loaded(experiment(model, pytorch={"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 5})) as engine:
        assert engine.parts.model.generation_config.max_matching_ngram_size == 5


def test_without_a_cache_every_step_sees_the_whole_text(model: Path) -> None:
    def widths(**section: Any) -> list[int]:
        seen: list[int] = []
        with loaded(experiment(model, pytorch=section)) as engine:
            engine.parts.model.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
            )
            engine.generate(requests("abcd", limits=[3], minimum=3))
        return seen

    assert widths() == [4, 1, 1]
    assert widths(use_cache=False) == [4, 5, 6]


def test_a_static_cache_has_one_size_for_every_batch(model: Path) -> None:
    with loaded(experiment(model, pytorch={"cache_implementation": "static"})) as engine:
        caches: list[Any] = []
        engine.parts.model.register_forward_pre_hook(
            lambda module, args, kwargs: caches.append(kwargs["past_key_values"]), with_kwargs=True
        )
        engine.generate(requests("abc", limits=[3], minimum=3))
        engine.generate(requests("a longer prompt", limits=[5], minimum=5))
        assert {type(cache).__name__ for cache in caches} == {"StaticCache"}
        assert {layer.max_cache_len for cache in caches for layer in cache.layers} == {64 + 16}


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloading_a_cache_needs_a_gpu_to_take_it_from(model: Path, kind: str) -> None:
    found = problems(model, CPU, pytorch={"cache_implementation": kind})
    assert found == [
        f"pytorch.cache_implementation: {kind} moves keys and values off a GPU, and there is none. Remove it."
    ]
    assert problems(model, GPU, pytorch={"cache_implementation": kind, "device": "cuda"}) == []


def test_a_quantised_cache_needs_its_package(model: Path) -> None:
    (found,) = problems(model, CPU, pytorch={"cache_implementation": "quantized"})
    assert "pip install optimum-quanto" in found


def test_the_assistant_drafts_with_its_settings(model: Path, tmp_path: Path) -> None:
    drafter = save_model(tmp_path, seed=1, num_hidden_layers=1)
    section = {
        "assistant_model": str(drafter),
        "num_assistant_tokens": 3,
        "num_assistant_tokens_schedule": "constant",
    }
    with loaded(experiment(model, precision="bf16", pytorch=section)) as engine:
        assistant = engine.parts.decoding.generate_arguments["assistant_model"]
        assert assistant.config.num_hidden_layers == 1
        assert assistant.dtype is torch.bfloat16
        assert assistant.generation_config.num_assistant_tokens == 3
        calls: list[int] = []
        assistant.register_forward_pre_hook(lambda *_: calls.append(1))
        engine.generate(requests("abc", limits=[8], minimum=8))
        assert calls
        settings = engine.describe().settings
        assert settings["pytorch.assistant_model"] == str(drafter)
        assert settings["pytorch.num_assistant_tokens_schedule"] == "constant"


def test_an_assistant_that_is_not_there_is_named(model: Path) -> None:
    config = experiment(model, pytorch={"assistant_model": "./no-drafter"})
    (found,) = PyTorchBackend(SystemClock()).preflight(config)
    assert found == "pytorch.assistant_model: no such directory: no-drafter"


# --- decoder -----------------------------------------------------------------------------------------------------


def test_sampling_parameters_are_those_asked_for(model: Path) -> None:
    decoder = {"temperature": 0.7, "top_k": 11, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3}
    with loaded(experiment(model, decoder=decoder)) as engine:
        generation = engine.parts.model.generation_config
        assert {name: getattr(generation, name) for name in decoder} == decoder
        assert generation.do_sample
        assert {
            f"decoder.{name}": value for name, value in decoder.items()
        }.items() <= engine.describe().settings.items()


def test_switching_top_k_off_reaches_the_engine(model: Path) -> None:
    with loaded(experiment(model, decoder={"temperature": 1.0, "top_k": 0})) as engine:
        assert engine.parts.model.generation_config.top_k == 0


@pytest.mark.parametrize("decoder", [{"temperature": 0}, {"do_sample": False}, {"preset": "deterministic"}])
def test_greedy_decoding_has_no_sampling_parameters(model: Path, decoder: dict[str, Any]) -> None:
    with loaded(experiment(model, decoder=decoder)) as engine:
        generation, described = engine.parts.model.generation_config, engine.describe().settings
        assert generation.do_sample is False
        for name, unset in (("temperature", (None, 1.0)), ("top_p", (None, 1.0)), ("top_k", (None, 50))):
            assert getattr(generation, name) in unset
            assert f"decoder.{name}" not in described


def test_a_checkpoints_own_generation_file_adds_nothing_but_its_end_tokens(tmp_path: Path) -> None:
    save_model(tmp_path)
    with loaded(experiment(tmp_path)) as plain:
        expected = ids(plain.generate(requests("the quick", limits=[12])))
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.3, "top_p": 0.2, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1,'
        ' "suppress_tokens": [109, 118, 31], "max_length": 3, "eos_token_id": [1, 200], "pad_token_id": 5}'
    )
    with loaded(experiment(tmp_path)) as engine:
        generation = engine.parts.model.generation_config
        assert generation.repetition_penalty in (None, 1.0)
        assert generation.suppress_tokens is None
        assert engine.parts.decoding.eos_token_ids == (1, 200)
        assert engine.parts.decoding.pad_token_id == 5
        (got,) = ids(engine.generate(requests("the quick", limits=[12])))
    assert got == expected[0][: len(got)]
    assert len(got) == 12 or got[-1] == 200


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_token(model: Path) -> None:
    with loaded(experiment(model, pytorch={"batch_size": 2})) as engine:
        assert engine.parts.decoding.pad_token_id == EOS
        output = engine.generate(requests("a", "abcdefgh", limits=[4], minimum=4))
        assert [request.input_tokens for request in output.requests] == [1, 8]


# --- torch.compile, TF32 -----------------------------------------------------------------------------------------


def test_compiling_goes_through_torch_compile_and_gives_the_same_text(model: Path) -> None:
    section = {"torch_compile": True, "torch_compile_backend": "eager", "torch_compile_dynamic": True}
    with loaded(experiment(model)) as plain:
        expected = ids(plain.generate(requests("abc", limits=[4])))
    with loaded(experiment(model, pytorch=section)) as engine:
        assert is_compiled(engine.parts.model)
        assert engine.describe().settings["pytorch.torch_compile"] is True
        assert ids(engine.generate(requests("abc", limits=[4]))) == expected
        from torch._dynamo.utils import counters

        assert counters["stats"]["unique_graphs"] >= 1  # the compiler really saw the model


def test_a_compiler_mode_reaches_the_compiler(model: Path) -> None:
    section = {"torch_compile": True, "torch_compile_mode": "reduce-overhead"}
    with loaded(experiment(model, pytorch=section)) as engine:
        assert engine.parts.model._compiled_call_impl.get_compiler_config()["triton.cudagraphs"] is True


def test_compiling_switched_off_also_switches_off_what_generate_would_compile(model: Path) -> None:
    with loaded(experiment(model, pytorch={"torch_compile": False})) as engine:
        assert not is_compiled(engine.parts.model)
        assert engine.parts.model.generation_config.disable_compile is True
    with loaded(experiment(model)) as engine:
        assert not engine.parts.model.generation_config.disable_compile


def test_unset_compiler_settings_are_not_passed() -> None:
    assert compile_arguments(PyTorchConfig(torch_compile=True)) == {}


def test_a_mode_that_the_compiler_backend_would_ignore_is_refused(model: Path) -> None:
    section = {"torch_compile": True, "torch_compile_mode": "max-autotune", "torch_compile_backend": "aot_eager"}
    (found,) = problems(model, CPU, pytorch=section)
    assert "'aot_eager' ignores it" in found


def test_cuda_graphs_need_a_gpu(model: Path) -> None:
    section = {"torch_compile": True, "torch_compile_backend": "cudagraphs"}
    assert "needs a CUDA GPU" in problems(model, CPU, pytorch=section)[0]


GRAPHS = (
    ({"torch_compile_mode": "reduce-overhead"}, "default or max-autotune-no-cudagraphs."),
    ({"torch_compile_backend": "cudagraphs"}, "inductor."),
)


@pytest.mark.parametrize(("section", "instead"), GRAPHS)
def test_cuda_graphs_need_a_cache_that_stays(model: Path, section: dict[str, object], instead: str) -> None:
    """On an H100 the first replay ends the run: "accessing tensor output of CUDAGraphs that has been overwritten"."""
    section = {"torch_compile": True, **section}
    (found,) = problems(model, GPU, pytorch=section)
    assert "Set pytorch.cache_implementation: static" in found
    assert found.endswith(instead)
    for more in ({"cache_implementation": "static"}, {"use_cache": False}):
        assert problems(model, GPU, pytorch={**section, **more}) == []
    assert (
        problems(model, GPU, pytorch={"torch_compile": True, "torch_compile_mode": "max-autotune-no-cudagraphs"}) == []
    )


@pytest.mark.parametrize(("allow", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_set_while_loaded_and_put_back(model: Path, allow: bool, precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    with loaded(experiment(model, pytorch={"allow_tf32": allow})):
        assert torch.get_float32_matmul_precision() == precision
    assert torch.get_float32_matmul_precision() == before


def test_tf32_on_the_cpu_is_refused_as_without_effect(model: Path) -> None:
    assert "no effect on the CPU" in problems(model, CPU, pytorch={"allow_tf32": True})[0]
