"""Models and adapters that are there, half there, or not there at all; what pre-flight finds without loading."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from llenergymeasure.core.backends.checks import EngineHost  # noqa: E402
from llenergymeasure.core.backends.conformance import check_backend  # noqa: E402
from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest, InferenceBackend  # noqa: E402
from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend  # noqa: E402
from llenergymeasure.core.backends.pytorch.model_checks import architecture_is_loadable  # noqa: E402
from llenergymeasure.core.backends.steps import StepLog  # noqa: E402
from llenergymeasure.core.clock import SystemClock  # noqa: E402
from llenergymeasure.core.model.source import ModelSource  # noqa: E402
from llenergymeasure.domain.warnings import WarningCode  # noqa: E402
from llenergymeasure.exceptions import BackendError  # noqa: E402
from pytorch_models import EOS, byte_tokenizer, experiment, ids, loaded, requests, save_adapter, save_model  # noqa: E402

TEXTS = ("the quick brown fox", "why?")


def backend() -> PyTorchBackend:
    return PyTorchBackend(SystemClock())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"), model)


# --- adapters ----------------------------------------------------------------------------------------------------


def test_an_adapter_changes_the_text_and_merging_it_does_not_change_it_again(model: Path, adapter: Path) -> None:
    with loaded(experiment(model)) as engine:
        plain = ids(engine.generate(requests(*TEXTS)))
    with loaded(experiment(model, lora={"adapter_path": str(adapter)})) as engine:
        kept = ids(engine.generate(requests(*TEXTS)))
        assert engine.parts.adapter is not None
        assert engine.parts.adapter.active_peft_config.r == 4
        described = engine.describe()
        assert described.settings["lora.rank"] == 4
        assert described.settings["lora.target_modules"] == ["down_proj", "q_proj"]
        kept_params = described.parameters.params
    with loaded(experiment(model, lora={"adapter_path": str(adapter), "merge_weights": True})) as engine:
        merged = ids(engine.generate(requests(*TEXTS)))
        assert engine.parts.adapter is None
        assert not [name for name, _ in engine.parts.model.named_parameters() if "lora" in name]
        merged_params = engine.describe().parameters.params
    assert kept != plain
    assert merged == kept
    # two layers, rank 4: q_proj is 64 -> 64, down_proj 128 -> 64
    assert kept_params == (merged_params or 0) + 2 * 4 * ((64 + 64) + (128 + 64))


def test_adapter_weights_have_the_precision_of_the_experiment(model: Path, adapter: Path) -> None:
    with loaded(experiment(model, precision="bf16", lora={"adapter_path": str(adapter)})) as engine:
        assert {parameter.dtype for parameter in engine.parts.model.parameters()} == {torch.bfloat16}


def test_an_adapter_for_a_wider_model_is_refused_with_both_names(model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", hidden_size=32, intermediate_size=64)
    misfit = save_adapter(tmp_path / "adapter", other)
    with pytest.raises(BackendError, match=rf"lora: {misfit} does not fit {model} \(.*size mismatch.*made for {other}"):
        backend().load(experiment(model, lora={"adapter_path": str(misfit)}))


def test_an_adapter_for_a_deeper_model_is_refused_although_its_tensors_fit(model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", num_hidden_layers=3)
    misfit = save_adapter(tmp_path / "adapter", other)
    with pytest.raises(BackendError, match=r"does not fit .*4 tensors have no counterpart"):
        backend().load(experiment(model, lora={"adapter_path": str(misfit)}))


def test_an_adapter_for_other_layers_is_refused(model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "gpt2", model_type="gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=64)
    misfit = save_adapter(tmp_path / "adapter", other, target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(BackendError, match=r"lora: .* does not fit"):
        backend().load(experiment(model, lora={"adapter_path": str(misfit)}))


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_adapter_whose_weights_cannot_be_read_is_not_blamed_on_the_model(
    damage: str, model: Path, tmp_path: Path
) -> None:
    broken = save_adapter(tmp_path / "adapter", model)
    weights = broken / "adapter_model.safetensors"
    os.truncate(weights, 4) if damage == "cut" else weights.unlink()
    with pytest.raises(BackendError, match=rf"lora: the weights of {broken} cannot be read .* missing or damaged"):
        backend().load(experiment(model, lora={"adapter_path": str(broken)}))


def test_an_adapter_that_lengthens_the_prompt_is_refused(model: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(tmp_path)
    with pytest.raises(BackendError, match="PROMPT_TUNING adapter, not a low-rank one"):
        backend().load(experiment(model, lora={"adapter_path": str(tmp_path)}))


@pytest.mark.parametrize("vocabulary", [258, 260])
def test_an_adapter_that_carries_embeddings_is_loaded_with_them(model: Path, tmp_path: Path, vocabulary: int) -> None:
    base = AutoModelForCausalLM.from_pretrained(model)
    base.resize_token_embeddings(vocabulary)
    torch.nn.init.normal_(base.get_input_embeddings().weight)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path, save_embedding_layers=True)
    with loaded(experiment(model, lora={"adapter_path": str(tmp_path)})) as engine:
        assert torch.equal(engine.parts.model.get_input_embeddings().weight, base.get_input_embeddings().weight)
        assert ids(engine.generate(requests(*TEXTS)))


def test_an_adapter_directory_without_an_adapter_is_found_before_loading(model: Path, tmp_path: Path) -> None:
    (found,) = backend().preflight(experiment(model, lora={"adapter_path": str(tmp_path)}))
    assert found.startswith(f"lora.adapter_path: {tmp_path} holds no adapter_config.json")
    (found,) = backend().preflight(experiment(model, lora={"adapter_path": str(tmp_path / "gone")}))
    assert found == f"lora.adapter_path: no such directory: {tmp_path / 'gone'}"


# --- models ------------------------------------------------------------------------------------------------------


def test_weights_missing_from_the_checkpoint_are_not_made_up(tmp_path: Path) -> None:
    save_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"lacks 1 weights \(first: model.layers.1.mlp.up_proj.weight\)"):
        backend().load(experiment(tmp_path))


def test_weights_that_the_config_leaves_no_place_for_are_named(tmp_path: Path) -> None:
    save_model(tmp_path, num_hidden_layers=3)
    edit_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(BackendError, match=r"holds 9 weights .*does not use \(model.layers.2.input_layernorm.weight, "):
        backend().load(experiment(tmp_path))
    whole = save_model(tmp_path / "whole")
    drafting = {"pytorch": {"assistant_model": str(tmp_path)}}
    with pytest.raises(BackendError, match=r"pytorch.assistant_model: .* holds 9 weights"):
        backend().load(experiment(whole, **drafting))


def test_masks_that_older_releases_saved_are_no_weights(tmp_path: Path) -> None:
    save_model(tmp_path, model_type="gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=256)
    file = tmp_path / "model.safetensors"
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9), "transformer.h.0.attn.masked_bias": torch.ones(1)}
    save_file({**load_file(file), **masks}, file, metadata={"format": "pt"})
    with loaded(experiment(tmp_path)) as engine:
        assert ids(engine.generate(requests("abc", limits=[2])))


@pytest.mark.parametrize("pad", [-1, 258, 32_000])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_padding_id_outside_the_vocabulary_is_replaced_since_padding_is_masked(
    model: Path, tmp_path: Path, pad: int, file: str
) -> None:
    save_model(tmp_path)
    edit_config(tmp_path, file, pad_token_id=pad)
    batch = {"pytorch": {"batch_size": 2}}
    with loaded(experiment(model, **batch)) as plain, loaded(experiment(tmp_path, **batch)) as engine:
        assert engine.parts.decoding.pad_token_id == EOS
        assert ids(engine.generate(requests(*TEXTS))) == ids(plain.generate(requests(*TEXTS)))


def test_an_end_token_outside_the_vocabulary_ends_nothing(tmp_path: Path) -> None:
    save_model(tmp_path)
    edit_config(tmp_path, "generation_config.json", eos_token_id=[EOS, -1, 32_000])
    with loaded(experiment(tmp_path)) as engine:
        assert engine.parts.decoding.eos_token_ids == (EOS,)
        (text,) = ids(engine.generate(requests("abc", limits=[6], minimum=6)))
        assert len(text) == 6


def test_a_context_that_yarn_stretches_is_as_long_as_it_is_stretched(tmp_path: Path) -> None:
    save_model(tmp_path)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 10_000.0}
    edit_config(tmp_path, rope_parameters=None, rope_scaling=scaling)
    config = experiment(tmp_path, max_input_tokens=600, max_output_tokens=16)
    assert list(backend().preflight(config)) == []
    with loaded(config) as engine:
        assert engine.describe().context_length == 1024
        assert ids(engine.generate(requests("x" * 500, limits=[2])))


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, tokenizer=False)
    (found,) = backend().preflight(experiment(tmp_path))
    assert found.startswith(f"model: {tmp_path} comes without a tokenizer")
    with pytest.raises(BackendError, match="comes without a tokenizer"):
        backend().tokenizer(experiment(tmp_path))


def test_a_damaged_tokenizer_is_found_before_loading(tmp_path: Path) -> None:
    file = save_model(tmp_path) / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:500])
    (found,) = backend().preflight(experiment(tmp_path))
    assert found.startswith(f"model: the tokenizer of {tmp_path} cannot be loaded (JSONDecodeError:")
    assert "Fetch or save its files anew" in found


def test_a_revision_of_a_model_that_is_not_from_the_hub_is_refused(model: Path) -> None:
    (found,) = backend().preflight(experiment(model, revision="v1"))
    assert found.startswith("revision: 'v1' names a commit on the Hub")
    (found,) = backend().preflight(experiment("builtin/tiny-llama", revision="v1"))
    assert found.startswith("revision: 'v1' names a commit on the Hub")


@pytest.mark.parametrize("path", ["lost\0adapter", "a\nb"])
def test_an_unsafe_path_is_refused_and_not_printed_as_it_stands(model: Path, path: str) -> None:
    with pytest.raises(ValidationError, match=r"lora\.adapter_path\n  Value error, holds a control character") as found:
        experiment(model, lora={"adapter_path": path})
    assert path not in str(found.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_directory_that_holds_no_model_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    (found,) = backend().preflight(experiment(tmp_path))
    assert found.startswith("model: ")
    assert "config.json" in found
    with pytest.raises(BackendError, match=r"config.json"):
        backend().load(experiment(tmp_path))


def test_damaged_weights_are_an_error_and_leave_nothing_loaded(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    engine = backend()
    with pytest.raises(BackendError, match=r"cannot be loaded"):
        engine.load(experiment(tmp_path))
    with pytest.raises(BackendError, match="no model loaded"):
        engine.describe()


def test_an_unknown_built_in_model_is_found_in_preflight() -> None:
    (found,) = backend().preflight(experiment("builtin/tiny-lama"))
    assert "Did you mean 'builtin/tiny-llama'?" in found


def test_preflight_gives_every_reason_at_once(tmp_path: Path) -> None:
    section = {"allow_tf32": True, "cache_implementation": "offloaded"}
    config = experiment(tmp_path / "gone", pytorch=section, lora={"adapter_path": str(tmp_path / "lost")})
    found = backend().preflight(config)
    for start in ("model:", "lora.adapter_path:", "pytorch.allow_tf32:"):
        assert [problem for problem in found if problem.startswith(start)], start
    assert any(problem.startswith("pytorch.cache_implementation:") for problem in found)


def test_preflight_compares_lengths_with_the_models_context(model: Path) -> None:
    (found,) = backend().preflight(experiment(model, max_input_tokens=200, max_output_tokens=100))
    assert "max_input_tokens (200) + max_output_tokens (100) = 300" in found
    assert "takes 256 tokens in all" in found
    assert "max_input_tokens: 156" in found


def test_preflight_refuses_encoder_decoder_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    assert any("encoder-decoder" in problem for problem in backend().preflight(experiment(tmp_path)))


def test_preflight_of_a_good_experiment_finds_nothing_and_loads_nothing(model: Path) -> None:
    engine = backend()
    assert engine.preflight(experiment(model)) == []
    with pytest.raises(BackendError, match="no model loaded"):
        engine.describe()


def test_the_tokenizer_speaks_the_models_ids(model: Path) -> None:
    tokenizer = backend().tokenizer(experiment(model))
    assert tokenizer.vocab_size == 258
    assert tokenizer.special_ids == {0, EOS}
    assert tokenizer.decode(tokenizer.encode("naïve ☃")) == "naïve ☃"


# --- conformance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [{"batch_size": 3}, {"batch_size": 4, "num_beams": 2}])
def test_the_pytorch_backend_conforms(model: Path, section: dict[str, object]) -> None:
    assert check_backend(backend, experiment(model, pytorch=section)) == []


def test_the_pytorch_backend_conforms_with_the_built_in_model() -> None:
    assert check_backend(backend, experiment("builtin/tiny-llama", pytorch={"batch_size": 4})) == []


class CarelessBackend(PyTorchBackend):
    """Counts padding as input, forgets minimum lengths, has its own idea of time, compiles for ever, and prints."""

    def generate(self, requests: list[GenerationRequest]) -> GenerationOutput:
        from dataclasses import replace

        torch.rand(1)
        print("generating…")
        width = max(len(request.token_ids) for request in requests)
        steps = StepLog()
        steps.add(0.0, 1000, 0, 0)
        output = super().generate([replace(request, max_new_tokens=6, min_new_tokens=0) for request in requests])
        return GenerationOutput(
            tuple(replace(one, input_tokens=width, started_s=one.started_s - 1000.0) for one in output.requests),
            compilations=1,
            steps=steps,
        )

    def plan_devices(self, config: object) -> tuple[str, ...]:
        return ("GPU-0",)


def test_a_careless_engine_is_told_everything_it_does_wrong(model: Path) -> None:
    def careless() -> InferenceBackend:
        return CarelessBackend(SystemClock())

    failures = check_backend(careless, experiment(model, pytorch={"batch_size": 4}))
    found = {failure.check for failure in failures}
    assert found == {
        *("devices", "outputs", "forced_lengths", "company", "row_limits", "timestamps", "steps", "shapes"),
        "side_effects",
    }
    assert any("is padding counted?" in str(failure) for failure in failures)


def test_an_engine_that_cannot_load_is_reported_not_raised(tmp_path: Path) -> None:
    (save_model(tmp_path) / "model.safetensors").write_bytes(b"not a tensor")
    failures = check_backend(backend, experiment(tmp_path))
    assert [failure.check for failure in failures] == ["load"]


# --- models that are not what is measured here -------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "electra"])
def test_a_model_that_sees_the_whole_text_is_refused_before_anything_is_loaded(tmp_path: Path, family: str) -> None:
    save_model(tmp_path, model_type=family, num_key_value_heads=None)
    (problem,) = backend().preflight(experiment(tmp_path))
    assert "encoder-only model" in problem
    edit_config(tmp_path, is_decoder=True)
    assert list(backend().preflight(experiment(tmp_path))) == []


def bare(directory: Path, **config: object) -> Path:
    """A directory with a tokenizer and a `config.json`, and no weights: pre-flight must not need them."""
    byte_tokenizer().save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_code_of_a_models_own_needs_leave_before_anything_is_loaded(tmp_path: Path) -> None:
    code = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"}
    bare(tmp_path, model_type="mine", auto_map=code)
    problems = backend().preflight(experiment(tmp_path))
    assert any("brings code of its own (modeling_mine.Mine)" in problem for problem in problems)
    assert all("set trust_remote_code: true" in problem for problem in problems)
    host = EngineHost(ModelSource(str(tmp_path), config={"model_type": "mine", "auto_map": code}), on_gpu=False)
    assert list(architecture_is_loadable(experiment(tmp_path, trust_remote_code=True), host)) == []


def test_code_of_its_own_is_not_needed_for_an_architecture_that_transformers_has(tmp_path: Path) -> None:
    bare(tmp_path, model_type="llama", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}, vocab_size=258)
    assert list(backend().preflight(experiment(tmp_path))) == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {}},
            "multimodal",
        ),
        ({"model_type": "qwen2_audio", "audio_config": {}}, "multimodal"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "(ViTModel) is a 'vit' model"),
        ({"model_type": "of-tomorrow"}, "is a 'of-tomorrow' model, which transformers"),
        ({}, "names no model_type"),
    ],
)
def test_a_model_that_is_no_language_model_is_refused_by_its_config(
    tmp_path: Path, config: dict[str, object], reason: str
) -> None:
    assert any(reason in problem for problem in backend().preflight(experiment(bare(tmp_path, **config))))


@pytest.mark.parametrize(
    ("quantisation", "reason"),
    [
        ({"quant_method": "awq", "bits": 4}, r"quantised \(awq\), .*gptqmodel"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, r"quantised \(compressed-tensors\)"),
        ({"quant_method": "secret"}, r"quantised \(secret\), .*Unknown quantization type"),
    ],
)
def test_quantised_weights_need_what_reads_them_before_they_are_read(
    tmp_path: Path, quantisation: dict[str, object], reason: str
) -> None:
    bare(tmp_path, model_type="llama", vocab_size=258, quantization_config=quantisation)
    (problem,) = backend().preflight(experiment(tmp_path))
    assert re.search(reason, problem)
    assert "Install what is missing" in problem


def test_a_package_that_is_there_and_broken_is_named_with_its_reason(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optimum").mkdir()
    (tmp_path / "optimum" / "__init__.py").write_text("raise OSError('libquanto.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = backend().preflight(experiment(model, pytorch={"cache_implementation": "quantized"}))
    assert "optimum is installed, and breaks when it is imported (OSError: libquanto.so" in problem


def test_sizes_that_the_4_bit_kernel_of_a_processor_does_not_take_are_named(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    model = save_model(tmp_path, intermediate_size=144)
    problems = list(backend().preflight(experiment(model, pytorch={"load_in_4bit": True})))
    if functional.has_avx512bf16():
        assert "model.layers.0.mlp.gate_proj is 64 to 144" in problems[0]
        assert "load_in_8bit" in problems[0]
    else:
        assert problems == []
    assert list(backend().preflight(experiment(model, pytorch={"load_in_8bit": True}))) == []


def test_an_encoder_is_told_by_its_head_too(tmp_path: Path) -> None:
    save_model(tmp_path)
    edit_config(tmp_path, architectures=["LlamaForSequenceClassification"])
    assert "(LlamaForSequenceClassification) is an encoder-only" in backend().preflight(experiment(tmp_path))[0]


def test_a_family_whose_rows_depend_on_each_other_is_warned_about_in_batches(tmp_path: Path) -> None:
    save_model(tmp_path, model_type="rwkv", attention_hidden_size=64)
    with loaded(experiment(tmp_path, pytorch={"batch_size": 2})) as engine:
        (warning,) = engine.describe().warnings
        assert warning.code is WarningCode.BATCH_CHANGES_TEXTS
        assert "pytorch.batch_size: 1" in warning.message
    with loaded(experiment(tmp_path)) as engine:
        assert engine.describe().warnings == ()


def edit_config(directory: Path, file: str = "config.json", **fields: object) -> None:
    """Change fields of a saved model's configuration; `None` removes one."""
    path = directory / file
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
