from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.exceptions import ConfigError
from llenergymeasure.security import MAX_ID_LENGTH, for_display, is_safe_path, sanitize_experiment_id, validate_path


def test_a_plain_path_comes_back_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert validate_path("results/run-1") == tmp_path.resolve() / "results" / "run-1"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert validate_path("~/data") == tmp_path.resolve() / "data"


def test_parent_steps_are_fine_without_a_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    assert validate_path("../base.yaml") == tmp_path.resolve() / "base.yaml"


@pytest.mark.parametrize(
    "path",
    ["", "   ", "a\0b", "line\nbreak", "bell\x07", "half \ud800 character", "x" * 256, "é" * 128, "d/" * 3000],
)
def test_paths_no_file_system_should_see_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^output_dir: "):
        validate_path(path, what="output_dir")


def test_names_of_255_bytes_are_fine(tmp_path: Path) -> None:
    assert validate_path("x" * 255, within=tmp_path).name == "x" * 255


def test_spaces_and_unicode_are_fine(tmp_path: Path) -> None:
    assert validate_path("mes résultats/実験 1", within=tmp_path) == tmp_path.resolve() / "mes résultats" / "実験 1"


def test_an_unknown_home_is_an_error_with_the_path() -> None:
    with pytest.raises(ConfigError, match="no-such-user-here"):
        validate_path("~no-such-user-here/data")


def test_a_missing_path_is_named_when_it_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset: 'prompts.jsonl' does not exist"):
        validate_path("prompts.jsonl", within=tmp_path, must_exist=True, what="dataset")


@pytest.mark.parametrize("target", ["../outside", "a/../../outside", "/etc/passwd", "..", "a/b/../../.."])
def test_a_path_cannot_leave_its_boundary(tmp_path: Path, target: str) -> None:
    base = tmp_path / "results"
    base.mkdir()
    assert not is_safe_path(base, target)
    with pytest.raises(ConfigError, match="leads out of"):
        validate_path(target, within=base)


def test_a_symlink_cannot_lead_out(tmp_path: Path) -> None:
    base = tmp_path / "results"
    base.mkdir()
    (base / "link").symlink_to(tmp_path, target_is_directory=True)
    assert not is_safe_path(base, "link/elsewhere")


def test_a_symlink_that_stays_inside_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert is_safe_path(tmp_path, "link/run")


def test_a_sibling_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    assert not is_safe_path(tmp_path / "results", tmp_path / "results-of-others" / "x")


def test_a_loop_of_links_is_an_error_not_a_hang(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="a/x"):
        validate_path("a/x", within=tmp_path, must_exist=True)


@given(st.text(max_size=60))
def test_no_text_gets_out_of_a_directory(text: str) -> None:
    base = Path(os.getcwd()).resolve()
    if is_safe_path(base, text):
        assert validate_path(text, within=base).is_relative_to(base)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("run-7", "run-7"),
        ("meta-llama/Llama-3.1-8B", "meta-llama_Llama-3.1-8B"),
        ("builtin/tiny-llama", "builtin_tiny-llama"),
        ("  my first study ", "my_first_study"),
        ("../../etc/passwd", "etc_passwd"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
    ],
)
def test_common_names_stay_readable(raw: str, expected: str) -> None:
    assert sanitize_experiment_id(raw) == expected


@pytest.mark.parametrize("raw", ["con", "NUL", "com1.txt", "aux.tar.gz"])
def test_reserved_names_are_changed(raw: str) -> None:
    assert sanitize_experiment_id(raw).split(".")[0].lower() not in {"con", "nul", "com1", "aux"}


@pytest.mark.parametrize("raw", ["", " ", "\t\n"])
def test_an_empty_id_is_refused(raw: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        sanitize_experiment_id(raw)


@pytest.mark.parametrize(("one", "other"), [("模型", "数据"), ("a*b", "a?b"), ("é", "e"), ("x" * 300, "x" * 301)])
def test_ids_that_differ_in_lost_characters_stay_apart(one: str, other: str) -> None:
    assert sanitize_experiment_id(one) != sanitize_experiment_id(other)


@given(st.text(min_size=1).filter(str.strip))
def test_an_id_is_one_safe_name_whatever_came_in(raw: str) -> None:
    name = sanitize_experiment_id(raw)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    assert len(name) <= MAX_ID_LENGTH
    assert sanitize_experiment_id(name) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, grün, 漢字\n\tand lines", "plain, grün, 漢字\n\tand lines"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("bell\a back\b return\r \x9b2J", "bell\\x07 back\\x08 return\\r \\x9b2J"),
        ("turned \u202e round", "turned \\u202e round"),
        ("see https://user:pass@hub.example/x and user@host", "see https://***@hub.example/x and user@host"),
    ],
)
def test_what_is_shown_steers_no_terminal_and_tells_no_password(text: str, shown: str) -> None:
    assert for_display(text) == shown
