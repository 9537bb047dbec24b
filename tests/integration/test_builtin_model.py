"""The built-in model as engines see it: made on disk, loaded by transformers, generating greedily."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.builtin_models import materialise, packaged_files
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.exceptions import BackendError

torch = pytest.importorskip("torch", reason="needs the pytorch extra")
transformers = pytest.importorskip("transformers", reason="needs the pytorch extra")

MODEL = "builtin/tiny-llama"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(MODEL, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(raw.text).input_ids[:48] for raw in load_raw_prompts("aienergyscore", 24).prompts]


@pytest.fixture(scope="module")
def texts(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """128 greedy tokens (or as many as come before EOS) of each prompt."""
    return greedy(model, prompts, 128)


def greedy(model: Any, prompts: list[list[int]], new_tokens: int, **settings: Any) -> list[list[int]]:
    """Output ids of left-padded prompts in one batch, cut after each row's EOS."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    rows = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, **settings)
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows[:, width:].tolist()]


def test_the_weights_are_the_same_bytes_on_every_machine(model_dir: Path) -> None:
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(model_dir / "model.safetensors").items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(torch.int16).numpy().tobytes())
    assert digest.hexdigest() == "4a8f6c8f63c9710e19ae6cc7f943f60191328d94bed6eff713bfc6260c6370bd"


def test_every_precision_has_the_same_weights(model_dir: Path, model: Any) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        other = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor.float(), model.state_dict()[name]), name


def test_it_is_a_small_llama_that_loads_without_missing_weights(model_dir: Path) -> None:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(model_dir, output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 2.6e6 < sum(parameter.numel() for parameter in model.parameters()) < 6e6


def test_the_tokenizer_puts_bos_first_and_gives_text_back(tokenizer: Any) -> None:
    text = "Glaciers move — slowly. 氷河 <|none|>\n\tdéjà vu"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer("").input_ids == [tokenizer.bos_token_id]
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_training_the_tokenizer_again_gives_the_same_one(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "build_tokenizer.py"
    output = tmp_path / "tokenizer.json"
    subprocess.run([sys.executable, str(script), "--output", str(output)], check=True)
    shipped = packaged_files(MODEL) / "tokenizer.json"
    assert json.loads(output.read_text())["model"] == json.loads(shipped.read_text())["model"]


def test_greedy_text_does_not_run_in_circles(texts: list[list[int]]) -> None:
    for row in texts:
        fourgrams = [tuple(row[start : start + 4]) for start in range(len(row) - 3)]
        assert len(set(fourgrams)) >= 0.95 * len(fourgrams)


def test_outputs_hang_on_the_prompt(texts: list[list[int]]) -> None:
    assert len({tuple(row[:16]) for row in texts}) == len(texts)


def test_texts_neither_end_at_once_nor_hold_padding_or_bos(texts: list[list[int]]) -> None:
    assert all(len(row) > 1 for row in texts)
    assert sum(len(row) == 128 for row in texts) >= 0.8 * len(texts)
    assert not any({0, 1} & set(row) for row in texts)


def test_eos_competes_like_any_other_token(model: Any, prompts: list[list[int]]) -> None:
    with torch.inference_mode():
        logits = model(torch.tensor([prompts[0]])).logits[0]
    assert logits[:, 2].std() == pytest.approx(logits[:, 3:].std().item(), rel=0.5)


def test_one_at_a_time_and_batches_of_eight_give_the_same_ids(model: Any, prompts: list[list[int]]) -> None:
    alone = [greedy(model, [prompt], 32)[0] for prompt in prompts[:4]]
    assert greedy(model, prompts[:8], 32)[:4] == alone


def test_margins_of_the_top_token_stand_float_error(
    model: Any, prompts: list[list[int]], texts: list[list[int]]
) -> None:
    """The error is seen by computing the same logits twice, with and without left padding beside another sequence."""
    margins, errors = [], []
    with torch.inference_mode():
        for prompt, text in zip(prompts[:12], texts[:12], strict=True):
            sequence = prompt + text[:-1]
            alone = model(torch.tensor([sequence])).logits[0, len(prompt) - 1 :]
            ids = torch.tensor([[0] * 7 + sequence, sequence + [5] * 7])
            mask = torch.tensor([[0] * 7 + [1] * len(sequence), [1] * (len(sequence) + 7)])
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            padded = model(ids, attention_mask=mask, position_ids=positions).logits[0, 7 + len(prompt) - 1 :]
            top = alone.topk(2).values
            margins.append(top[:, 0] - top[:, 1])
            errors.append((alone - padded).abs().amax(dim=1))
    margin, error = torch.cat(margins), torch.cat(errors)
    assert margin.median() > 5000 * error.median()
    assert (margin < 2 * error.max()).float().mean() < 1e-3


def test_a_second_call_finds_the_first_ones_files(model_dir: Path) -> None:
    stamp = (model_dir / "model.safetensors").stat().st_mtime_ns
    assert materialise(MODEL, model_dir.parent) == model_dir
    assert (model_dir / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_directory_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    directory = materialise(MODEL, tmp_path)
    (directory / "tokenizer.json").unlink()
    assert materialise(MODEL, tmp_path) == directory
    assert (directory / "tokenizer.json").read_bytes() == (packaged_files(MODEL) / "tokenizer.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["cut short", "overwritten"])
def test_a_damaged_file_is_found_told_and_made_again(
    model_dir: Path, tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(model_dir, tmp_path / model_dir.name))
    good = (copy / name).read_bytes()
    middle = len(good) // 2
    (copy / name).write_bytes(good[:middle] + (b"" if damage == "cut short" else b"\0" * 8 + good[middle + 8 :]))
    assert materialise(MODEL, tmp_path) == copy
    assert (copy / name).read_bytes() == good
    assert "was damaged and is made again" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


def test_processes_that_race_all_get_a_whole_model(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(materialise, [(MODEL, tmp_path)] * 3)
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]
    transformers.AutoModelForCausalLM.from_pretrained(found[0])


def test_a_read_only_home_gets_a_temporary_copy_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be: nobody can write below it, not even root")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    directory = materialise(MODEL)
    assert directory.is_relative_to(tmp_path / "tmp")
    assert (directory / "model.safetensors").is_file()
    assert "Set XDG_CACHE_HOME" in caplog.text


def test_nowhere_to_write_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="Set XDG_CACHE_HOME or TMPDIR"):
        materialise(MODEL, tmp_path / "file" / "models")
