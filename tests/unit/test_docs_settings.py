"""docs/settings.md is complete, true and fresh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import build_references
import settings_map
import settings_reference
from settings_map import Effect

REAL = settings_map.EXPERIMENT["n"]


def problems_with(changes: Mapping[str, Effect | None]) -> list[str]:
    """What is wrong with the map as soon as some of its experiment's entries are changed or, for `None`, taken out."""
    merged = {**settings_map.EXPERIMENT, **changes}
    experiment = {name: entry for name, entry in merged.items() if entry is not None}
    found = settings_reference.problems({**settings_map.MAPS, "experiment": experiment})
    return [problem for problem in found if problem not in settings_reference.problems()]


def test_everything_a_user_can_set_has_an_entry_whose_module_and_test_exist() -> None:
    assert settings_reference.problems() == []


def test_the_pages_are_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_references.main(["--check"]) == 0, capsys.readouterr().out


def test_a_field_without_an_entry_is_noticed() -> None:
    assert problems_with({"warmup.cv_threshold": None}) == [
        "experiment: warmup.cv_threshold has no entry in settings_map"
    ]


def test_an_entry_without_a_field_is_noticed() -> None:
    assert problems_with({"warmup.gone": REAL}) == ["experiment: warmup.gone is in settings_map and cannot be set"]


def test_a_module_that_does_not_exist_is_noticed() -> None:
    assert problems_with({"n": replace(REAL, acts_in="core/gone.py")}) == [
        "experiment: n acts in core/gone.py, which does not exist"
    ]


@pytest.mark.parametrize(
    ("name", "gone", "error"),
    [
        ("import test_gaps as gaps", "import test_gone as gaps", ModuleNotFoundError),
        ("gaps.test_gaps_really_pass", "gaps.test_gone", AttributeError),
    ],
)
def test_a_test_that_does_not_exist_fails_the_import_of_the_map(name: str, gone: str, error: type[Exception]) -> None:
    path = Path(settings_map.__file__)
    source = path.read_text()
    assert name in source
    with pytest.raises(error, match="test_gone"):
        exec(compile(source.replace(name, gone), path, "exec"), dict(vars(settings_map)))


def test_an_entry_shown_by_what_is_no_test_is_noticed() -> None:
    assert problems_with({"n": replace(REAL, shown_by=problems_with)}) == [
        "experiment: n is shown by problems_with, which is no test"
    ]


def test_flags_and_variables_are_those_of_the_program() -> None:
    assert {"llem run CONFIG", "llem run --batch-size", "llem run -n", "llem --version"} <= set(
        settings_reference.flags()
    )
    assert settings_reference.variables_in_the_code() == set(settings_map.VARIABLES)
