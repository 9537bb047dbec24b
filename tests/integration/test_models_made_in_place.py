"""Built-in models of real sizes: what is on disk, and what the engine makes of it, here with a shrunken shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the pytorch extra")
pytest.importorskip("transformers", reason="needs the pytorch extra")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llenergymeasure.builtin_models import materialise
from llenergymeasure.core.backends.conformance import check_backend
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.model.memory import estimate_vram
from llenergymeasure.exceptions import BackendError
from pytorch_models import experiment, ids, loaded

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
PROMPT = [GenerationRequest(0, (1, 17, 42, 99), 8, 8)]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise("builtin/llama-1b", tmp_path_factory.mktemp("models"))


@pytest.fixture
def small(full: Path, tmp_path: Path) -> Path:
    """The directory of the model as it is made, with every dimension shrunken."""
    directory = Path(shutil.copytree(full, tmp_path / "small"))
    return reshaped(directory)


def reshaped(directory: Path, **more: object) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **SHAPE, **more}))
    return directory


def weights(directory: Path, **fields: object) -> dict[str, torch.Tensor]:
    with loaded(experiment(directory, **fields)) as engine:
        return dict(engine.parts.model.state_dict())


@pytest.mark.parametrize(("model", "billions"), [("builtin/llama-1b", 1.236), ("builtin/llama-8b", 8.030)])
def test_they_have_the_sizes_of_the_models_whose_names_they_have(model: str, billions: float, tmp_path: Path) -> None:
    directory = materialise(model, tmp_path)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    assert sum(parameter.numel() for parameter in shape.parameters()) == pytest.approx(1e9 * billions, rel=1e-3)
    assert estimate_vram(experiment(model, precision="bf16")).weights_mb == pytest.approx(2000 * billions, rel=1e-3)


def test_no_weights_are_on_disk_and_a_second_call_finds_the_first_ones_files(full: Path) -> None:
    assert {file.suffix for file in full.iterdir()} == {".json"}
    assert sum(file.stat().st_size for file in full.iterdir()) < 2_000_000
    stamp = (full / "config.json").stat().st_mtime_ns
    assert materialise("builtin/llama-1b", full.parent) == full
    assert (full / "config.json").stat().st_mtime_ns == stamp


def test_a_directory_that_lost_its_tokenizer_is_made_again(full: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(full, tmp_path / full.name))
    (copy / "tokenizer.json").unlink()
    assert materialise("builtin/llama-1b", tmp_path) == copy
    assert (copy / "tokenizer.json").read_bytes() == (full / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_engine_conforms_with_one(small: Path, precision: str) -> None:
    assert check_backend(lambda: PyTorchBackend(SystemClock()), experiment(small, precision=precision)) == []


def test_every_load_has_the_same_weights_whatever_the_experiments_seed(small: Path) -> None:
    first, second = weights(small, random_seed=1), weights(small, random_seed=2)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with loaded(experiment(small)) as engine:
        once = ids(engine.generate(PROMPT))
        assert ids(engine.generate(PROMPT)) == once
        assert len(once[0]) == 8


def test_another_seed_or_name_gives_other_weights(small: Path) -> None:
    first = weights(small)
    layers = [first[f"model.layers.{index}.self_attn.q_proj.weight"] for index in range(2)]
    assert not torch.equal(*layers)
    assert not torch.equal(
        layers[0], weights(reshaped(small, weights_seed=2))["model.layers.0.self_attn.q_proj.weight"]
    )


def test_matrices_keep_unit_size_and_norms_are_ones(small: Path) -> None:
    for name, tensor in weights(small).items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            assert tensor.std().item() == pytest.approx(tensor.shape[1] ** -0.5, rel=0.1), name


def test_tied_embeddings_are_one_tensor(small: Path) -> None:
    with loaded(experiment(small)) as engine:
        model = engine.parts.model
        assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        assert not model.training


def test_the_generators_of_the_process_are_left_alone(small: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    weights(small)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pytorch": {"load_in_8bit": True}}, r"not quantised; it cannot take quantization_config"),
        (
            {"passthrough_kwargs": {"low_cpu_mem_usage": True}},
            r"it cannot take low_cpu_mem_usage .passthrough_kwargs sent along: low_cpu_mem_usage",
        ),
    ],
)
def test_what_needs_files_is_refused_by_name(small: Path, fields: dict[str, object], said: str) -> None:
    with pytest.raises(BackendError, match=said), loaded(experiment(small, **fields)):
        pass


def test_one_may_draft_for_another(small: Path) -> None:
    with loaded(experiment(small, pytorch={"assistant_model": str(small)})) as engine:
        assert len(ids(engine.generate(PROMPT))[0]) == 8
