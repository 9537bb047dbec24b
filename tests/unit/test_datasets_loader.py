from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dataset_tokenizer import ByteTokenizer

from llenergymeasure.config.models import ExperimentConfig, SyntheticDatasetConfig
from llenergymeasure.datasets.loader import BUILTIN_DATASETS, load_prompts, load_raw_prompts
from llenergymeasure.datasets.types import PromptTokenizer
from llenergymeasure.exceptions import ConfigError, DatasetError


@pytest.fixture
def prompts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "abcdef"}\n{"prompt": "ab", "max_new_tokens": 9}\n{"prompt": "abcd", "max_new_tokens": 200}\n'
    )
    monkeypatch.chdir(tmp_path)
    return "prompts.jsonl"


def config(dataset: str, **settings: Any) -> ExperimentConfig:
    return ExperimentConfig(model="some/model", dataset=dataset, **settings)


def test_the_fake_tokenizer_is_a_prompt_tokenizer() -> None:
    assert isinstance(ByteTokenizer(), PromptTokenizer)


def test_prompts_are_cut_at_the_end_with_bos_counted(prompts_file: str) -> None:
    loaded = load_prompts(config(prompts_file, n=3, max_input_tokens=5), ByteTokenizer())
    assert [prompt.token_ids for prompt in loaded.prompts] == [
        (1, *(ord(letter) + 3 for letter in "abcd")),
        (1, *(ord(letter) + 3 for letter in "ab")),
        (1, *(ord(letter) + 3 for letter in "abcd")),
    ]
    assert [prompt.truncated for prompt in loaded.prompts] == [True, False, False]
    assert loaded.truncated_count == 1
    assert [prompt.index for prompt in loaded.prompts] == [0, 1, 2]


def test_a_prompt_keeps_its_whole_text_when_cut(prompts_file: str) -> None:
    loaded = load_prompts(config(prompts_file, n=1, max_input_tokens=2), ByteTokenizer())
    assert loaded.prompts[0].text == "abcdef"


def test_a_prompts_own_limit_never_raises_the_experiments(prompts_file: str) -> None:
    loaded = load_prompts(config(prompts_file, n=3, max_output_tokens=128), ByteTokenizer())
    assert [prompt.max_new_tokens for prompt in loaded.prompts] == [None, 9, 128]


def test_a_prompt_without_any_token_is_an_error(tmp_path: Path) -> None:
    class Deaf(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return []

    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(DatasetError, match="no token of prompt 1"):
        load_prompts(config(str(path), n=1), Deaf())


def test_synthetic_prompts_follow_the_config() -> None:
    experiment = ExperimentConfig.model_validate(
        {"model": "some/model", "dataset": {"synthetic": {"n": 4, "input_len": 20, "output_len": 6}}}
    )
    loaded = load_prompts(experiment, ByteTokenizer())
    assert [len(prompt.token_ids) for prompt in loaded.prompts] == [20] * 4
    assert loaded.truncated_count == 0
    assert loaded.identity.source == "synthetic"


def test_a_synthetic_pool_that_is_too_small_names_both_numbers() -> None:
    with pytest.raises(DatasetError, match=r"n = 9 prompts were asked for, it has 4"):
        load_raw_prompts(SyntheticDatasetConfig(n=4), 9)


def test_a_path_with_home_is_read(prompts_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_raw_prompts(f"~/{prompts_file}", 1).prompts[0].text == "abcdef"


def test_a_suffix_counts_in_any_case(prompts_file: str, tmp_path: Path) -> None:
    (tmp_path / "LOUD.JSONL").write_text('{"prompt": "HELLO"}\n')
    assert load_raw_prompts("LOUD.JSONL", 1).prompts[0].text == "HELLO"
    with pytest.raises(DatasetError, match=r"Did you mean 'LOUD\.JSONL'\?"):
        load_raw_prompts("louds.jsonl", 1)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("aienergyscor", r"unknown name\. Did you mean 'aienergyscore'\? Use one of aienergyscore, a path ending"),
        ("AIEnergyScore", r"Did you mean 'aienergyscore'\?"),
        ("AIEnergyScore/text_generation", r"Did you mean 'hf:AIEnergyScore/text_generation'\?"),
        ("squad", r"unknown name\. Use one of"),
        ("promts.jsonl", r"no such file in .*\. Did you mean 'prompts\.jsonl'\?"),
        ("nowhere/prompts.jsonl", r"the directory .*nowhere does not exist"),
        ("notes.txt", r"only JSON Lines files are read, by their suffix \.jsonl"),
        ("folder.jsonl", r"not a file"),
    ],
)
def test_a_wrong_name_says_what_to_write(prompts_file: str, tmp_path: Path, dataset: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DatasetError, match=message) as raised:
        load_raw_prompts(dataset, 1)
    assert f"dataset {dataset}" in str(raised.value)


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(ConfigError, match="control character"):
        load_raw_prompts("a\0.jsonl", 1)


def test_the_bundled_data_set_is_found_by_name() -> None:
    raw = load_raw_prompts("aienergyscore", 1000)
    assert (raw.identity.name, raw.identity.prompt_count, raw.identity.source) == ("aienergyscore", 1000, "builtin")
    with pytest.raises(DatasetError, match=r"n = 1001 prompts were asked for, it has 1000"):
        load_raw_prompts("aienergyscore", 1001)


def test_bundled_names_stand_for_files_of_the_package() -> None:
    assert all(path.is_file() for path in BUILTIN_DATASETS.values())


class _WordTokenizer:
    """One id for each word; it writes down how much text it was given."""

    vocab_size = 1000
    special_ids = frozenset({0})

    def __init__(self) -> None:
        self.seen: list[int] = []

    def encode(self, text: str) -> list[int]:
        self.seen.append(len(text))
        return [0, *(1 + len(word) for word in text.split())]

    def decode(self, ids: Sequence[int]) -> str:
        return ""


@pytest.mark.parametrize("gap", [1, 500])
def test_of_an_endless_prompt_only_the_beginning_is_tokenised(tmp_path: Path, gap: int) -> None:
    text = "".join(f"{'a' * (i % 7 + 1)}{' ' * gap}" for i in range(1_000_000 // gap))
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text}))
    config = ExperimentConfig(model="m", n=1, dataset=str(tmp_path / "p.jsonl"), max_input_tokens=16)
    tokenizer = _WordTokenizer()
    (prompt,) = load_prompts(config, tokenizer).prompts
    assert list(prompt.token_ids) == _WordTokenizer().encode(text)[:16]
    assert prompt.truncated
    assert max(tokenizer.seen) < len(text)
