"""Hub syntax against the real `datasets` library, on data sets made here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.exceptions import DatasetError

datasets = pytest.importorskip("datasets", reason="needs the datasets extra")

TEXTS = ["Name three rivers.", "Was ist ein Gletscher?", "Explain tides to a child."]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def texts(dataset: str, n: int) -> list[str]:
    return [prompt.text for prompt in load_raw_prompts(dataset, n).prompts]


def test_a_directory_of_parquet_files_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    datasets.Dataset.from_dict({"id": [1, 2, 3], "instruction": TEXTS}).to_parquet(folder / "train.parquet")
    assert texts(f"hf:{folder}", 2) == TEXTS[:2]
    assert load_raw_prompts(f"hf:{folder}", 1).identity.source == "directory"


def test_a_split_is_chosen_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    datasets.Dataset.from_dict({"text": TEXTS}).to_json(folder / "train.jsonl")
    datasets.Dataset.from_dict({"text": ["only test"]}).to_json(folder / "test.jsonl")
    assert texts(f"hf:{folder}:test", 1) == ["only test"]
    assert texts(f"hf:{folder}", 3) == TEXTS


@pytest.mark.parametrize("with_splits", [False, True])
def test_a_data_set_saved_to_disk_is_read(tmp_path: Path, with_splits: bool) -> None:
    table = datasets.Dataset.from_dict({"prompt": TEXTS})
    saved = datasets.DatasetDict({"train": table, "test": table.select([2])}) if with_splits else table
    saved.save_to_disk(tmp_path / "saved")
    assert texts(f"hf:{tmp_path / 'saved'}", 3) == TEXTS


def test_the_same_prompts_have_the_same_hash_wherever_they_lie(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"prompt": TEXTS})
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "parquet" / "train.parquet")
    hashes = {load_raw_prompts(f"hf:{tmp_path / kind}", 3).identity.sha256 for kind in ("saved", "parquet")}
    assert len(hashes) == 1


def test_an_unknown_split_is_an_error_with_its_name(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": TEXTS}).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(DatasetError, match="dev"):
        load_raw_prompts(f"hf:{tmp_path / 'data'}:dev", 1)


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="cannot be read"):
        load_raw_prompts(f"hf:{tmp_path / 'empty'}", 1)


def test_offline_mode_fails_at_once_and_says_so(tmp_path: Path) -> None:
    script = "from llenergymeasure.datasets.loader import load_raw_prompts; load_raw_prompts('hf:org/not-there', 1)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "HF_HUB_OFFLINE" in done.stderr.splitlines()[-1]
    assert "retry" not in done.stderr


def test_limits_that_a_table_holds_as_numbers_with_gaps_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {"prompt": TEXTS, "max_new_tokens": [16.0, None, float("nan")]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
    assert [prompt.max_new_tokens for prompt in load_raw_prompts(f"hf:{folder}", 3).prompts] == [16, None, None]
