from __future__ import annotations

import pickle

import pytest

from llenergymeasure.exceptions import PreFlightError


@pytest.mark.parametrize("failures", ["no GPU. Pass --device cpu.", ["no GPU. Pass --device cpu."]])
def test_one_reason_is_one_issue_however_it_is_given(failures: str | list[str]) -> None:
    error = PreFlightError(failures)
    assert str(error) == "Pre-flight failed: 1 issue\n  - no GPU. Pass --device cpu."
    assert error.failures == ("no GPU. Pass --device cpu.",)
    assert pickle.loads(pickle.dumps(error)).failures == error.failures


def test_several_reasons_are_listed_and_none_is_made_up() -> None:
    assert str(PreFlightError(["a", "b"])) == "Pre-flight failed: 2 issues\n  - a\n  - b"
    assert PreFlightError([]).failures == ()


@pytest.mark.parametrize("failures", [["one"], ["one", "two\nin two lines"]])
def test_a_pre_flight_error_told_by_another_process_is_the_same(failures: list[str]) -> None:
    error = PreFlightError(failures)
    told = PreFlightError.from_text(str(error))
    assert (told.failures, str(told)) == (error.failures, str(error))
