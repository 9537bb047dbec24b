from __future__ import annotations

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.results.student_t import student_t_quantile, student_t_tail

degrees = st.integers(1, 200) | st.floats(1.0, 1e5)


@given(st.floats(0.001, 0.999) | st.floats(1e-6, 1e-3), degrees)
def test_the_t_quantile_is_scipys(p: float, v: float) -> None:
    assert student_t_quantile(p, v) == pytest.approx(scipy.stats.t.ppf(p, v), rel=1e-9, abs=1e-9)


@given(st.floats(-50.0, 50.0), degrees)
def test_the_tail_is_scipys(t: float, v: float) -> None:
    assert student_t_tail(t, v) == pytest.approx(scipy.stats.t.sf(t, v), rel=2e-9, abs=1e-200)


@given(st.floats(-50.0, 50.0), degrees)
def test_both_tails_are_everything(t: float, v: float) -> None:
    assert student_t_tail(t, v) + student_t_tail(-t, v) == pytest.approx(1.0, rel=1e-12)


def test_the_t_quantile_is_that_of_the_printed_tables() -> None:
    assert [round(student_t_quantile(0.975, v), 3) for v in (1, 2, 4, 9, 29)] == [12.706, 4.303, 2.776, 2.262, 2.045]


def test_nothing_is_beyond_infinity() -> None:
    assert student_t_tail(float("inf"), 3) == 0.0
    assert student_t_tail(float("-inf"), 3) == 1.0


@pytest.mark.parametrize(("p", "v"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_the_t_quantile_refuses_what_has_no_answer(p: float, v: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        student_t_quantile(p, v)


def test_so_does_the_tail() -> None:
    with pytest.raises(ValueError, match="must be above 0, not 0"):
        student_t_tail(1.0, 0)
