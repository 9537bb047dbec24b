"""The VRAM estimate from files laid out as save_pretrained and the Hub's client do it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.model.kv_cache import kv_cache_bytes
from llenergymeasure.core.model.memory import estimate_vram, memory_text, read_model_files
from llenergymeasure.core.model.source import model_directory

LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA3_8B_WEIGHTS = 8_029_995_008  # matrices; norms are another 266,240


def write_model(directory: Path, config: dict[str, Any], shapes: dict[str, list[int]] | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if shapes is not None:
        write_safetensors(directory / "model.safetensors", shapes)
    return directory


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    entries: dict[str, Any] = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def experiment(model: Path | str, **fields: Any) -> ExperimentConfig:
    return ExperimentConfig(
        model=str(model), **{"max_input_tokens": 512, "max_output_tokens": 512, "n": 1000, **fields}
    )


def test_an_8b_model_in_bf16_needs_16_gb_its_cache_and_a_margin(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA3_8B)
    estimate = estimate_vram(experiment(tmp_path, pytorch={"batch_size": 8}))
    assert estimate.weights_mb == pytest.approx(2 * LLAMA3_8B_WEIGHTS / 1e6)
    # 2 (key, value) x 32 layers x 8 heads x 128 x 2 bytes = 131,072 bytes a token; 8 x 1,024 tokens
    assert estimate.kv_cache_mb == pytest.approx(131_072 * 8 * 1024 / 1e6)
    assert estimate.weights_mb is not None
    assert estimate.kv_cache_mb is not None
    assert estimate.total_mb == pytest.approx(1.15 * (estimate.weights_mb + estimate.kv_cache_mb))


def test_fp32_takes_twice_the_room_of_bf16(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA3_8B)
    half, full = (estimate_vram(experiment(tmp_path, precision=name)) for name in ("bf16", "fp32"))
    assert half.total_mb is not None
    assert full.total_mb == pytest.approx(2 * half.total_mb)


def test_weights_are_counted_in_the_files_where_they_are_here(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA3_8B, {"a": [1000, 1000], "b": [500_000]})
    assert estimate_vram(experiment(tmp_path)).weights_mb == pytest.approx(2 * 1_500_000 / 1e6)


def test_shards_that_are_not_all_here_are_not_taken_for_the_whole(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA3_8B)
    write_safetensors(tmp_path / "model-00001-of-00002.safetensors", {"a": [10, 10]})
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = read_model_files(tmp_path)
    assert files is not None
    assert files.stored_weights is None
    assert estimate_vram(experiment(tmp_path)).weights_mb == pytest.approx(2 * LLAMA3_8B_WEIGHTS / 1e6)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 4) + b"null", struct.pack("<Q", 10**12)])
def test_a_damaged_weight_file_is_not_read_as_a_size(tmp_path: Path, content: bytes) -> None:
    write_model(tmp_path, LLAMA3_8B)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert estimate_vram(experiment(tmp_path)).weights_mb == pytest.approx(2 * LLAMA3_8B_WEIGHTS / 1e6)


def test_four_bits_shrink_the_layers_and_leave_the_vocabulary(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA3_8B)
    ends = 2 * 128256 * 4096
    by_hand = ends * 2 + (LLAMA3_8B_WEIGHTS - ends) * 4.5 / 8
    estimate = estimate_vram(experiment(tmp_path, pytorch={"load_in_4bit": True}))
    assert estimate.weights_mb == pytest.approx(by_hand / 1e6)


def test_a_quantised_checkpoint_takes_what_its_files_take(tmp_path: Path) -> None:
    write_model(tmp_path, {**LLAMA3_8B, "quantization_config": {"quant_method": "awq"}}, {"a": [8, 8]})
    size = (tmp_path / "model.safetensors").stat().st_size
    assert estimate_vram(experiment(tmp_path)).weights_mb == pytest.approx(size / 1e6)


def test_a_batch_is_never_larger_than_the_experiment_and_beams_multiply_it(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA3_8B)
    one = estimate_vram(experiment(tmp_path, n=1)).kv_cache_mb
    assert one is not None
    assert estimate_vram(experiment(tmp_path, n=3, pytorch={"batch_size": 64})).kv_cache_mb == pytest.approx(3 * one)
    assert estimate_vram(experiment(tmp_path, n=1, pytorch={"num_beams": 4})).kv_cache_mb == pytest.approx(4 * one)


def test_a_sliding_window_bounds_the_cache_of_its_layers() -> None:
    sliding = {**LLAMA3_8B, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 16}
    full = kv_cache_bytes(LLAMA3_8B, 1, 1024, 2)
    assert full is not None
    assert kv_cache_bytes(sliding, 1, 1024, 2) == pytest.approx(full * (128 + 1024) / (2 * 1024))
    assert kv_cache_bytes({**LLAMA3_8B, "sliding_window": 128, "use_sliding_window": False}, 1, 1024, 2) == full


def test_layers_without_attention_cache_nothing() -> None:
    hybrid = {**LLAMA3_8B, "layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}
    full = kv_cache_bytes(LLAMA3_8B, 1, 1024, 2)
    assert full is not None
    assert kv_cache_bytes(hybrid, 1, 1024, 2) == pytest.approx(full / 4)


def test_multi_query_attention_caches_one_head() -> None:
    falcon = {"num_hidden_layers": 2, "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True}
    assert kv_cache_bytes(falcon, 1, 10, 2) == 2 * 2 * 64 * 10 * 2


def test_the_hubs_cache_is_found_by_the_clients_own_variables(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = write_model(repository / "snapshots" / "abc123", LLAMA3_8B)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    for environ in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        assert model_directory("owner/name", None, environ) == snapshot
        assert model_directory("owner/name", "abc123", environ) == snapshot
        assert model_directory("owner/name", "other", environ) is None
    assert model_directory("owner/name", None, {}, cache_home=tmp_path) == snapshot
    assert estimate_vram(experiment("owner/name"), environ={"HF_HOME": str(tmp_path)}).weights_mb is not None


def test_all_experts_of_a_mixture_must_fit_though_few_of_them_work() -> None:
    assert estimate_vram(experiment("Qwen/Qwen3-30B-A3B"), environ={"HF_HOME": "gone"}).weights_mb == 60_000


@pytest.mark.parametrize(
    ("quantisation", "bits"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, 4),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4),
        ({"quant_method": "quanto", "weights": "int8"}, 8),
        ({"quant_method": "secret"}, None),
        ("odd", None),
    ],
)
def test_a_quantised_checkpoint_without_its_files_is_as_large_as_its_bits(
    tmp_path: Path, quantisation: object, bits: int | None
) -> None:
    plain = estimate_vram(experiment(write_model(tmp_path / "plain", LLAMA3_8B))).weights_mb
    model = write_model(tmp_path / "quantised", {**LLAMA3_8B, "quantization_config": quantisation})
    found = estimate_vram(experiment(model)).weights_mb
    ends_mb = 2 * 128_256 * 4096 * 2 / 1e6  # embedding and output head keep 2 bytes a weight
    assert plain is not None
    expected = None if bits is None else pytest.approx(ends_mb + (plain - ends_mb) * (bits + 0.5) / 16)
    assert found == expected


def test_a_model_that_is_not_here_is_estimated_by_its_name_and_the_gap_is_named(tmp_path: Path) -> None:
    estimate = estimate_vram(experiment("owner/Model-7B"), environ={"HF_HOME": str(tmp_path)})
    assert estimate.weights_mb == pytest.approx(14_000)
    assert estimate.total_mb is None
    assert any("not on this machine yet" in note for note in estimate.notes)


def test_what_cannot_be_known_is_none_and_says_why(tmp_path: Path) -> None:
    unknown = estimate_vram(experiment("owner/mystery"), environ={"HF_HOME": str(tmp_path)})
    assert (unknown.weights_mb, unknown.kv_cache_mb, unknown.total_mb) == (None, None, None)
    assert unknown.notes == ("not known: owner/mystery is not on this machine yet",)
    write_model(tmp_path / "bare", {"model_type": "mystery"})
    bare = estimate_vram(experiment(tmp_path / "bare"))
    assert bare.total_mb is None
    assert "lacks" in bare.notes[0]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("TheBloke/Model-7B-AWQ", 4),
        ("owner/Model-7B-GPTQ-Int8", 8),
        ("unsloth/model-7b-bnb-4bit", 4),
        ("owner/Model-7B-FP8-dynamic", 8),
        ("owner/Model-7B.w8a8", 8),
        ("nvidia/Model-7B-NVFP4", 4),
    ],
)
def test_a_quantised_model_that_is_not_here_is_not_taken_for_a_plain_one(name: str, bits: int) -> None:
    estimate = estimate_vram(experiment(name), environ={"HF_HOME": "gone"})
    assert estimate.weights_mb == pytest.approx(7_000 * (bits + 0.5) / 8)
    assert f"{bits} bits" in estimate.notes[0]


def test_weights_that_are_quantised_while_loading_are_estimated_so_before_they_are_here() -> None:
    estimate = estimate_vram(experiment("owner/Model-7B", pytorch={"load_in_4bit": True}), environ={"HF_HOME": "gone"})
    assert estimate.weights_mb == pytest.approx(7_000 * 4.5 / 8)


@pytest.mark.parametrize("index", [True, False])
def test_only_the_files_that_are_loaded_count(tmp_path: Path, index: bool) -> None:
    write_model(tmp_path, LLAMA3_8B)
    write_safetensors(tmp_path / "consolidated.safetensors", {"a": [30, 10]})
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] if index else ["model.safetensors"]
    for name in names:
        write_safetensors(tmp_path / name, {name: [10, 10]})
    if index:
        weight_map = {name: name for name in names}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    files = read_model_files(tmp_path)
    assert files is not None
    assert files.stored_weights == 100 * len(names)
    assert files.weight_bytes == sum((tmp_path / name).stat().st_size for name in names)


def test_a_file_in_a_format_that_is_not_loaded_counts_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA3_8B)
    write_safetensors(tmp_path / "consolidated.safetensors", {"a": [30, 10]})
    assert read_model_files(tmp_path).stored_weights is None  # type: ignore[union-attr]


def test_without_a_cache_none_is_needed(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA3_8B)
    assert estimate_vram(experiment(tmp_path, pytorch={"use_cache": False})).kv_cache_mb == 0.0


def test_models_without_attention_keep_no_keys_and_values() -> None:
    assert kv_cache_bytes({"model_type": "mamba2", "num_heads": 8, "head_dim": 64, "hidden_size": 64}, 1, 9, 2) == 0.0


def test_small_amounts_of_memory_are_told_in_small_units() -> None:
    assert [memory_text(megabytes) for megabytes in (12_345.0, 30.25, 0.4)] == ["12.3 GB", "30.2 MB", "0.4 MB"]
