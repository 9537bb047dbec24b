"""Files are read without surprises, and every failure is a `ConfigError` that says where."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llenergymeasure.config.yaml_io import load_document
from llenergymeasure.exceptions import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


def _load(folder: Path, text: str, name: str = "c.yaml") -> dict[str, Any]:
    (folder / name).write_text(text, encoding="utf-8")
    return load_document(folder / name).data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("10_000", 10_000),
        ("1e-3", 0.001),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("-3", -3),
        ("-.inf", -math.inf),
        ("yes", True),
        ("off", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("1.2.3", "1.2.3"),
        ("'yes'", "yes"),
        ("hf:a/b@main", "hf:a/b@main"),
    ],
)
def test_scalars_mean_what_people_mean(folder: Path, text: str, value: object) -> None:
    loaded = _load(folder, f"key: {text}\n")["key"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_nan_stays_a_float_for_the_models_to_refuse(folder: Path) -> None:
    assert math.isnan(_load(folder, "key: .nan\n")["key"])


def test_a_byte_order_mark_is_passed_over(folder: Path) -> None:
    assert _load(folder, "\ufeffmodel: gpt2\n") == {"model": "gpt2"}


def test_anchors_and_merge_keys_work_and_own_keys_win(folder: Path) -> None:
    data = _load(
        folder,
        "a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc:\n  <<: *a\n  y: 3\nd:\n  <<: [*a, *b]\nlist: &l [1, 2]\nsame: *l\n",
    )
    assert data["c"] == {"x": 1, "y": 3}
    assert data["d"] == {"x": 1, "y": 1, "z": 2}
    assert data["same"] == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nn: 1\nmodel: b\n", r"c\.yaml, line 3, column 1: duplicate key 'model'"),
        ("decoder:\n  top_k: 1\n  top_k: 2\n", r"line 3, column 3: duplicate key 'top_k'"),
        ("model: [a\nn: 1\n", r"c\.yaml, line \d+, column \d+: invalid YAML"),
        ("model: \ta: b\n  - x\n", r"invalid YAML"),
        ("a: *missing\n", r"line 1, column 4: invalid YAML: .*undefined alias"),
        ("a: &a [*a]\n", r"refers to itself"),
        ("a: 1\n---\nb: 2\n", r"invalid YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", r"line 1, column 4: the tag .* is not supported"),
        ("a: !custom 1\n", r"the tag '!custom' is not supported"),
        ("a: !!int abc\n", r"'abc' is not a valid int"),
        ("1: a\n", r"the key '1' is not text"),
        ("on: a\n", r"the key 'on' is not text"),
        ("[a, b]: c\n", r"\(a list or mapping\) is not text"),
        ("a:\n  <<: 3\n", r"`<<` merges mappings only"),
        ("- a\n- b\n", r"expected a mapping .* found a list"),
        ("just text\n", r"expected a mapping .* found the single value 'just text'"),
        ("", r"the file is empty"),
        ("# only a comment\n", r"the file is empty"),
        ("a: \0\n", r"invalid YAML"),
        ("a: " + "[" * 200 + "]" * 200, r"nested more than 100 levels"),
        ("- " * 200 + "x", r"nested more than 100 levels"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_where(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(folder, text)


def test_aliases_cannot_blow_a_small_file_up(folder: Path) -> None:
    levels = "".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 10)}]\n" for i in range(9))
    with pytest.raises(ConfigError, match="once aliases are expanded"):
        _load(folder, f"l0: &l0 [x, x]\n{levels}")


@pytest.mark.parametrize("depth", [1_000, 300_000])
def test_absurd_nesting_is_refused_before_it_can_exhaust_the_stack(folder: Path, depth: int) -> None:
    with pytest.raises(ConfigError):
        _load(folder, "a: " + "[" * depth)
    with pytest.raises(ConfigError):
        _load(folder, '{"a": ' + "[" * depth, "c.json")


def test_files_that_are_not_there_or_not_text_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_document(folder / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_document(folder)
    (folder / "latin.yaml").write_bytes("model: caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 text \(byte 10\)"):
        load_document(folder / "latin.yaml")


def test_json_is_told_by_its_suffix(folder: Path) -> None:
    assert _load(folder, '{"model": "a", "decoder": {"top_k": 1}}', "c.json") == {"model": "a", "decoder": {"top_k": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "a": 2}', "duplicate key 'a'"),
        ('{"a": 1,\n b}', r"c\.json, line 2, column 2: invalid JSON"),
        ("[1]", "expected a mapping"),
        ("", "the file is empty"),
        ('{"a": ' + "1" * 5000 + "}", "invalid JSON"),
    ],
)
def test_json_that_cannot_be_used_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(folder, text, "c.json")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("model",), 1),
        (("decoder", "top_k"), 3),
        (("decoder", "missing"), 2),
        (("runs", 1, "n"), 6),
        (("runs", 7), 4),
        (("dataset", "synthetic", "n"), 7),
        (("merged", "x"), 8),
        (("nowhere",), None),
    ],
)
def test_every_key_remembers_its_line(folder: Path, path: tuple[str | int, ...], line: int | None) -> None:
    (folder / "l.yaml").write_text(
        "model: a\ndecoder:\n  top_k: 1\nruns:\n  - n: 1\n  - n: 2\n"
        "dataset: {n: 3}\nbase: &b {x: 1}\nmerged: {<<: *b}\n"
    )
    assert load_document(folder / "l.yaml").source_map.line(path) == line


def test_json_keys_have_lines_too(folder: Path) -> None:
    (folder / "l.json").write_text('{\n  "model": "a",\n  "n": 0\n}')
    assert load_document(folder / "l.json").source_map.line(("n",)) == 3


_YAML_LIKE = st.text(alphabet="abn:-[]{}&*<>!|'\"#,.%@? \n\t01_~\\", max_size=60)


@settings(deadline=None, max_examples=300)
@given(
    content=st.one_of(st.binary(max_size=60), st.text(max_size=60), _YAML_LIKE),
    suffix=st.sampled_from(["yaml", "json"]),
)
def test_any_content_is_read_or_refused_as_a_config_error(folder: Path, content: str | bytes, suffix: str) -> None:
    path = folder / f"fuzz.{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        document = load_document(path)
    except ConfigError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 (either outcome is fine)
    else:
        assert all(isinstance(key, str) for key in document.data)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(data=st.dictionaries(st.text(), _JSON, min_size=1, max_size=4))
def test_json_reads_back_as_it_was_written(folder: Path, data: dict[str, Any]) -> None:
    (folder / "round.json").write_text(json.dumps(data))
    assert load_document(folder / "round.json").data == data


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: a\ndecoder:\n\ttop_k: 1\n", 3),
        ("model: a\n\tn: 1\n", 2),
        ("decoder:\n  top_k: 1\n \ttop_p: 1\n", 3),
        ("sweep:\n\t- 1\n", 2),
    ],
)
def test_a_tab_is_called_a_tab(folder: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"line {line}: indented with a tab, which YAML does not allow\. Use spaces"):
        _load(folder, text)


def test_a_tab_that_does_no_harm_is_let_be(folder: Path) -> None:
    assert _load(folder, "model:\ta\nn:\t5\t# five\n") == {"model": "a", "n": 5}


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "1" + "_0" * 3000])
@pytest.mark.parametrize("text", ["n: {}\n", "a: {{b: [{}]}}\n"])
def test_an_endless_number_is_refused(folder: Path, text: str, number: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid int"):
        _load(folder, text.format(number))


def test_an_endless_number_in_json_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="a number too long"):
        _load(folder, '{"n": ' + "9" * 101 + "}", "c.json")


def test_a_file_beyond_all_reason_is_refused_by_its_size(folder: Path) -> None:
    with pytest.raises(ConfigError, match="more than 4 MB, which no configuration has"):
        _load(folder, "a: [" + "1," * 2_000_000 + "]\n")
    with pytest.raises(ConfigError, match="more than 4 MB"):
        load_document("/dev/zero")
