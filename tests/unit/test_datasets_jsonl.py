from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.datasets.sources import read_jsonl
from llenergymeasure.datasets.types import RawPrompt
from llenergymeasure.exceptions import DatasetError


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, n: int = 1) -> tuple[RawPrompt, ...]:
    return read_jsonl(path, n, name=path.name).prompts


def test_prompts_come_in_file_order(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "b"}\n{"prompt": "a", "max_new_tokens": 7}\n{"prompt": "c"}\n')
    assert read(path, 2) == (RawPrompt("b"), RawPrompt("a", 7))


def test_the_hash_is_that_of_the_files_bytes(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a"}\r\n\n{"prompt": "b"}'
    identity = read_jsonl(write(tmp_path, content), 1, name="mine.jsonl").identity
    assert identity.sha256 == hashlib.sha256(content).hexdigest()
    assert (identity.name, identity.prompt_count, identity.source) == ("mine.jsonl", 1, "file")


def test_windows_files_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [prompt.text for prompt in read(path, 2)] == ["a", "b"]


def test_a_line_separator_inside_a_prompt_does_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "a\u2028b\x85c"}\n')
    assert read(path)[0].text == "a\u2028b\x85c"


def test_other_keys_are_left_alone(tmp_path: Path) -> None:
    assert read(write(tmp_path, '{"id": 1, "prompt": "a"}')) == (RawPrompt("a"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'prompt': 'a'}", "not valid JSON"),
        (b'{"prompt": "a"', "not valid JSON"),
        (b'["a"]', "must be a JSON object"),
        (b'{"text": "a"}', r"no \"prompt\" key \(keys found: 'text'\)"),
        (b"{}", r"keys found: none"),
        (b'{"prompt": null}', "must be text, got NoneType"),
        (b'{"prompt": ["a"]}', "must be text, got list"),
        (b'{"prompt": ""}', "is empty"),
        (b'{"prompt": " \\n\\t"}', "is empty"),
        (b'{"prompt": "\\ud800"}', "half a character"),
        (b'{"prompt": "a", "max_new_tokens": 0}', "at least 1, got 0"),
        (b'{"prompt": "a", "max_new_tokens": "5"}', "at least 1, got '5'"),
        (b'{"prompt": "a", "max_new_tokens": 1.5}', "at least 1, got 1.5"),
        (b'{"prompt": "a", "max_new_tokens": true}', "at least 1, got True"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8 .byte 0xe9 at position 15"),
        (b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b"[" * 100_000, "not usable JSON|not valid JSON"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path, b'{"prompt": "good"}\n\n' + line + b'\n{"prompt": "good"}\n')
    with pytest.raises(DatasetError, match=rf"dataset prompts\.jsonl, line 3: .*({message})"):
        read(path, 1)


def test_more_prompts_than_the_file_has_names_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"n = 5 prompts were asked for, it has 2\. Set n to at most 2"):
        read(write(tmp_path, '{"prompt": "a"}\n{"prompt": "b"}\n'), 5)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_called_so(tmp_path: Path, content: str) -> None:
    with pytest.raises(DatasetError, match="is empty"):
        read(write(tmp_path, content))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset gone\.jsonl: cannot be read: No such file"):
        read(tmp_path / "gone.jsonl")


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_text_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("round") / "p.jsonl"
    path.write_bytes(b"".join(json.dumps({"prompt": text}, ensure_ascii=False).encode() + b"\n" for text in texts))
    assert [prompt.text for prompt in read(path, len(texts))] == texts


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "p.jsonl"
    path.write_bytes(content)
    with contextlib.suppress(DatasetError):
        assert len(read(path)) == 1


@pytest.mark.parametrize(("written", "limit"), [("16", 16), ("16.0", 16), ("1.6e1", 16), ("null", None), ("NaN", None)])
def test_a_limit_may_be_written_as_tables_write_numbers(tmp_path: Path, written: str, limit: int | None) -> None:
    path = write(tmp_path, f'{{"prompt": "a", "max_new_tokens": {written}}}\n')
    assert read_jsonl(path, 1, name="d").prompts[0].max_new_tokens == limit


@pytest.mark.parametrize("written", ["16.5", "0.0", "-16.0", "Infinity", "1e400", '"16"', "false"])
def test_a_limit_that_is_no_number_of_tokens_is_refused(tmp_path: Path, written: str) -> None:
    path = write(tmp_path, f'{{"prompt": "a", "max_new_tokens": {written}}}\n')
    with pytest.raises(DatasetError, match=r"line 1: .*must be a whole number of at least 1"):
        read_jsonl(path, 1, name="d")
