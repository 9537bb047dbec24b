"""The arithmetic of a comparison, against scipy and against what must hold for any figures."""

from __future__ import annotations

import math

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.results.compare.welch import Contrast, contrast, geometric_mean, holm, log_spread_pct

FIGURE = st.floats(0.8, 1.25)
SIDE = st.lists(FIGURE, min_size=2, max_size=8, unique=True)
TWINS = st.integers(2, 8).flatmap(lambda n: st.tuples(*[st.lists(FIGURE, min_size=n, max_size=n, unique=True)] * 2))
SYSTEMATIC_PCT = st.just(0.0) | st.floats(0.01, 20.0)


@given(TWINS)
def test_with_as_many_runs_on_both_sides_it_is_welchs_test_of_the_logarithms(twins: tuple[list[float], ...]) -> None:
    logs = [[math.log(value) for value in side] for side in twins]
    found, expected = contrast(*twins), scipy.stats.ttest_ind(logs[1], logs[0], equal_var=False)
    assert found.p_different() == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)
    interval = [100 * math.expm1(min(end, 300.0)) for end in expected.confidence_interval(0.95)]
    assert found.interval_pct() == pytest.approx(interval, rel=1e-7, abs=1e-7)


@given(SIDE, SIDE)
def test_with_unequal_numbers_the_smaller_side_sets_the_degrees_of_freedom(a: list[float], b: list[float]) -> None:
    found = contrast(a, b)
    if len(a) != len(b):
        assert found.degrees_of_freedom == min(len(a), len(b)) - 1
        t = found.log_ratio / found.standard_error
        assert found.p_above(0.0) == pytest.approx(scipy.stats.t.sf(t, found.degrees_of_freedom), rel=1e-9, abs=1e-12)


@given(SIDE, SIDE, SYSTEMATIC_PCT)
def test_swapped_sides_give_the_inverse_change(a: list[float], b: list[float], systematic_pct: float) -> None:
    there, back = contrast(a, b, systematic_pct), contrast(b, a, systematic_pct)
    assert back.log_ratio == pytest.approx(-there.log_ratio, abs=1e-12)
    assert back.p_different() == pytest.approx(there.p_different(), rel=1e-6, abs=1e-12)
    low, high = (1 + end / 100 for end in there.interval_pct())
    assert [1 + end / 100 for end in back.interval_pct()] == pytest.approx([1 / high, 1 / low], rel=1e-6)
    assert there.inverse().interval_pct() == pytest.approx(back.interval_pct(), rel=1e-6, abs=1e-6)


@given(SIDE, SIDE, SYSTEMATIC_PCT)
def test_zero_is_outside_of_the_interval_where_the_difference_is_significant(
    a: list[float], b: list[float], systematic_pct: float
) -> None:
    found = contrast(a, b, systematic_pct)
    low, high = found.interval_pct()
    if abs(found.p_different() - 0.05) > 1e-9:
        assert (found.p_different() < 0.05) == (not low <= 0 <= high)


@given(SIDE, SIDE, st.floats(0.01, 20.0))
def test_what_repeats_do_not_show_only_makes_less_certain(
    a: list[float], b: list[float], systematic_pct: float
) -> None:
    without, with_it = contrast(a, b), contrast(a, b, systematic_pct)
    assert with_it.p_different() >= without.p_different() * (1 - 1e-9)
    assert with_it.interval_pct()[0] <= without.interval_pct()[0]
    assert with_it.interval_pct()[1] >= without.interval_pct()[1]


@given(SIDE, st.floats(0.5, 2.0))
def test_a_unit_changes_nothing(side: list[float], factor: float) -> None:
    other = [value * factor for value in side]
    scaled = contrast([1000 * value for value in side], [1000 * value for value in other])
    assert scaled.log_ratio == pytest.approx(contrast(side, other).log_ratio, abs=1e-9)
    assert scaled.log_ratio == pytest.approx(math.log(factor), abs=1e-9)


def test_three_runs_by_hand() -> None:
    """Both sides spread by exactly 1 % of the logarithm: s = 1 % * sqrt(2/3), t(4) = 2.776."""
    side = [math.exp(x) for x in (-0.01, 0.0, 0.01)]
    found = contrast(side, [1.1 * value for value in side])
    half_width = 2.776445 * 0.01 * math.sqrt(2 / 3)
    assert found.degrees_of_freedom == pytest.approx(4)
    assert found.interval_pct() == pytest.approx(
        [100 * (1.1 * math.exp(-half_width) - 1), 100 * (1.1 * math.exp(half_width) - 1)], abs=1e-4
    )
    assert geometric_mean(side) == pytest.approx(1.0)
    assert log_spread_pct(side) == pytest.approx(1.0)
    assert log_spread_pct([1.0]) is None


def test_half_widths_add_in_quadrature() -> None:
    """4 % that repeats do not show beside 3 % that they do: 5 %."""
    spread = Contrast(0.0, 0.03 / scipy.stats.t.ppf(0.975, 7), 7, 0.04 / scipy.stats.norm.ppf(0.975))
    assert spread.interval_pct() == pytest.approx([100 * math.expm1(-0.05), 100 * math.expm1(0.05)])
    at_the_edge = Contrast(0.05, spread.standard_error, 7, spread.systematic)
    assert at_the_edge.p_different() == pytest.approx(0.05)


def test_without_any_spread_only_what_repeats_do_not_show_is_left() -> None:
    assert contrast([1.0, 1.0], [1.0, 1.0]).p_different() == 1.0
    assert contrast([1.0, 1.0], [1.1, 1.1]).p_different() == 0.0
    doubted = contrast([1.0, 1.0], [1.1, 1.1], systematic_pct=10.0)
    assert doubted.p_different() == pytest.approx(0.05)


def test_a_limit_shifts_the_question() -> None:
    found = contrast([1.0, 1.01, 0.99], [1.1, 1.11, 1.09])
    assert found.p_above(0.0) < 0.001
    assert found.p_above(9.99) == pytest.approx(0.5, abs=0.02)
    assert found.p_above(30.0) > 0.999


def test_holms_correction_by_hand() -> None:
    """The textbook's: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, none smaller than the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0.0, 1.0), max_size=12))
def test_a_corrected_probability_lies_between_its_own_and_bonferronis(p_values: list[float]) -> None:
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p) + 1e-15
