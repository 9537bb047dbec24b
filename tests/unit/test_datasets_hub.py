from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.datasets.sources import HubSpec, hash_prompts, load_hub_prompts, parse_hub_spec
from llenergymeasure.datasets.types import RawPrompt
from llenergymeasure.exceptions import DatasetError

Rows = list[dict[str, Any]]


class Shelf:
    """A Hub in memory: splits of rows, a commit, and errors to raise before it answers."""

    def __init__(self, splits: Mapping[str, Rows], errors: Iterable[Exception] = ()) -> None:
        self._splits = splits
        self._errors = list(errors)
        self.rows_read = 0
        self.revisions: list[str | None] = []

    def commit(self, spec: HubSpec) -> str | None:
        if self._errors:
            raise self._errors.pop(0)
        return "c0ffee"

    def splits(self, spec: HubSpec, revision: str | None) -> Mapping[str, Iterable[dict[str, Any]]]:
        self.revisions.append(revision)
        return {name: self._read(rows) for name, rows in self._splits.items()}

    def _read(self, rows: Rows) -> Iterator[dict[str, Any]]:
        for row in rows:
            self.rows_read += 1
            yield row


def rows(*texts: str | None, column: str = "prompt") -> Rows:
    return [{column: text} for text in texts]


def load(shelf: Shelf, n: int = 1, dataset: str = "hf:org/data") -> list[str]:
    return [prompt.text for prompt in load_hub_prompts(dataset, n, library=shelf, sleep=lambda s: None).prompts]


@pytest.mark.parametrize(
    ("dataset", "spec"),
    [
        ("hf:squad", HubSpec("squad")),
        ("hf:AIEnergyScore/text_generation", HubSpec("AIEnergyScore/text_generation")),
        ("hf:org/data/en", HubSpec("org/data", config="en")),
        ("hf:org/data:test", HubSpec("org/data", split="test")),
        ("hf:org/data@v1.0", HubSpec("org/data", revision="v1.0")),
        ("hf:org/data@refs/convert/parquet", HubSpec("org/data", revision="refs/convert/parquet")),
        (
            "hf:o-r.g/d_a/wikitext-2-raw-v1:validation@1a2b",
            HubSpec("o-r.g/d_a", False, "wikitext-2-raw-v1", "validation", "1a2b"),
        ),
    ],
)
def test_every_part_of_the_name_is_understood(dataset: str, spec: HubSpec) -> None:
    assert parse_hub_spec(dataset) == spec


@pytest.mark.parametrize(
    "dataset", ["hf:", "hf:a/b/c/d", "hf:org/data:", "hf:org/data@", "hf:org/data:train[:5]", "hf:o rg/x"]
)
def test_a_malformed_name_shows_the_form(dataset: str) -> None:
    with pytest.raises(DatasetError, match=r"not of the form hf:<id>"):
        parse_hub_spec(dataset)


def test_a_local_path_may_hold_a_colon(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert parse_hub_spec(f"hf:{tmp_path}/a:b") == HubSpec(str(tmp_path.resolve() / "a:b"), is_local=True)
    assert parse_hub_spec(f"hf:{tmp_path}/a:b:test").split == "test"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no such directory: .*gone"):
        parse_hub_spec(f"hf:{tmp_path}/gone")


def test_only_as_many_rows_as_needed_are_read() -> None:
    shelf = Shelf({"train": rows(*"abcdefgh")})
    assert load(shelf, 3) == ["a", "b", "c"]
    assert shelf.rows_read == 3


def test_the_commit_that_is_recorded_is_the_one_that_is_read() -> None:
    shelf = Shelf({"train": rows("a")})
    identity = load_hub_prompts("hf:org/data@main", 1, library=shelf).identity
    assert identity.revision == "c0ffee"
    assert shelf.revisions == ["c0ffee"]
    assert (identity.source, identity.prompt_count) == ("hub", 1)


@pytest.mark.parametrize("column", ["prompt", "text", "instruction", "question", "input", "content"])
def test_common_prompt_columns_are_found(column: str) -> None:
    assert load(Shelf({"train": [{"id": 1, column: "hello"}]})) == ["hello"]


def test_prompt_beats_text_and_structured_columns_are_passed_over() -> None:
    assert load(Shelf({"train": [{"text": "no", "prompt": "yes"}]})) == ["yes"]
    assert load(Shelf({"train": [{"prompt": [{"role": "user"}], "text": "yes"}]})) == ["yes"]


def test_without_a_prompt_column_the_message_lists_what_is_there() -> None:
    with pytest.raises(DatasetError, match=r"it has 'label', 'image'; needed: one of prompt, text"):
        load(Shelf({"train": [{"label": 1, "image": b""}]}))


def test_structured_prompts_alone_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"no column with prompts as text: 'prompt' \(list\)"):
        load(Shelf({"train": [{"prompt": [{"role": "user"}]}]}))


def test_blank_rows_are_passed_over() -> None:
    assert load(Shelf({"train": rows(None, "a", "", " \n", "b")}), 2) == ["a", "b"]


def test_too_few_rows_name_both_numbers() -> None:
    with pytest.raises(DatasetError, match=r"n = 9 prompts were asked for, it has 2"):
        load(Shelf({"train": rows("a", "", "b")}), 9)


def test_the_only_split_is_taken_and_train_among_several() -> None:
    assert load(Shelf({"test": rows("a")})) == ["a"]
    assert load(Shelf({"test": rows("a"), "train": rows("b")})) == ["b"]


def test_an_unclear_or_unknown_split_lists_the_choices() -> None:
    shelf = Shelf({"en": rows("a"), "de": rows("b")})
    with pytest.raises(DatasetError, match=r"several splits \(en, de\).*Name one: hf:org/data:<split>"):
        load(shelf)
    with pytest.raises(DatasetError, match=r"no split 'fr' \(there are: en, de\)"):
        load(shelf, dataset="hf:org/data:fr")


def test_a_failing_network_is_tried_again() -> None:
    class TransportError(Exception):
        """As in httpx: derived from neither `OSError` nor `ConnectionError`."""

    shelf = Shelf({"train": rows("a")}, errors=[ConnectionError("reset"), TransportError("eof"), TimeoutError()])
    assert load(shelf) == ["a"]


def test_a_server_error_is_tried_again_and_a_missing_page_is_not() -> None:
    assert load(Shelf({"train": rows("a")}, errors=[http_error(503), http_error(429)])) == ["a"]
    shelf = Shelf({"train": rows("a")}, errors=[http_error(404)])
    with pytest.raises(DatasetError, match=r"dataset hf:org/data: cannot be read: HTTPError: status 404"):
        load(shelf)


def test_offline_mode_is_not_tried_again_and_is_named() -> None:
    pauses: list[float] = []
    shelf = Shelf({}, errors=[ConnectionError("offline mode is enabled")] * 2)
    with pytest.raises(DatasetError, match="HF_HUB_OFFLINE"):
        load_hub_prompts("hf:org/data", 1, library=shelf, sleep=pauses.append)
    assert pauses == []


def test_a_gated_data_set_names_the_token() -> None:
    class GatedRepoError(Exception):
        """As in huggingface_hub."""

    with pytest.raises(DatasetError, match="set HF_TOKEN"):
        load(Shelf({}, errors=[GatedRepoError("401 Client Error")]))


def test_the_hash_is_that_of_the_jsonl_file_with_these_prompts() -> None:
    lines = [{"prompt": "é"}, {"prompt": "b", "max_new_tokens": 5}]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    expected = hashlib.sha256(content.encode()).hexdigest()
    assert hash_prompts([RawPrompt("é"), RawPrompt("b", 5)]) == expected
    assert load_hub_prompts("hf:org/data", 2, library=Shelf({"train": lines})).identity.sha256 == expected


def http_error(status: int) -> Exception:
    class Response:
        status_code = status

    class HTTPError(Exception):
        response = Response()

    return HTTPError(f"status {status}")
