from __future__ import annotations

import random
import statistics as reference

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.domain.energy import EnergyBreakdown
from llenergymeasure.results.statistics import cycle_statistics, summarise_configurations
from result_samples import make_result, make_rich_result

figures = st.lists(st.floats(0.001, 1e6), min_size=2, max_size=40)


@given(figures)
def test_the_interval_is_the_textbooks(values: list[float]) -> None:
    found = cycle_statistics(values)
    assert found is not None
    assert found.mean == pytest.approx(reference.fmean(values))
    assert found.std == pytest.approx(reference.stdev(values))
    law = scipy.stats.t(len(values) - 1) if len(values) < 30 else scipy.stats.norm
    assert found.ci95_method == ("student_t" if len(values) < 30 else "normal")
    half_width = law.ppf(0.975) * reference.stdev(values) / len(values) ** 0.5
    assert found.ci95_low == pytest.approx(found.mean - half_width, abs=1e-9 * max(values))
    assert found.ci95_high == pytest.approx(found.mean + half_width, abs=1e-9 * max(values))


def test_three_cycles_by_hand() -> None:
    found = cycle_statistics([9.0, 10.0, 11.0])
    assert found is not None
    assert (found.mean, found.std, found.cv_pct, found.high_variation) == (10.0, 1.0, 10.0, True)
    assert found.ci95_high == pytest.approx(10 + 4.302653 / 3**0.5, rel=1e-6)


@pytest.mark.parametrize(("values", "flagged"), [([100.0, 104.0], False), ([100.0, 110.0], True), ([5.0, 5.0], False)])
def test_a_spread_above_five_per_cent_is_flagged(values: list[float], flagged: bool) -> None:
    found = cycle_statistics(values)
    assert found is not None
    assert found.high_variation is flagged


def test_one_cycle_has_a_mean_and_claims_no_spread() -> None:
    found = cycle_statistics([3.0, None])
    assert found is not None
    assert (found.count, found.mean, found.std, found.ci95_low, found.cv_pct) == (1, 3.0, None, None, None)
    assert cycle_statistics([None, None]) is None


def test_the_parametric_interval_holds_the_truth_in_about_95_of_100_draws() -> None:
    generator = random.Random(20260218)
    hits = 0
    for _ in range(2000):
        found = cycle_statistics([generator.gauss(10.0, 1.0) for _ in range(5)])
        assert found is not None
        assert found.ci95_low is not None
        assert found.ci95_high is not None
        hits += found.ci95_low <= 10.0 <= found.ci95_high
    assert 0.94 <= hits / 2000 <= 0.96


def test_the_bootstrap_is_repeatable_within_the_values_and_leaves_the_global_generator_alone() -> None:
    values = [1.0, 1.1, 1.2, 5.0]
    before = random.getstate()
    found = cycle_statistics(values, interval="bootstrap")
    assert found is not None
    assert random.getstate() == before
    assert found == cycle_statistics(values, interval="bootstrap")
    assert found.ci95_method == "bootstrap"
    assert found.ci95_low is not None
    assert found.ci95_high is not None
    assert 1.0 <= found.ci95_low < found.mean < found.ci95_high <= 5.0


def test_the_bootstrap_agrees_with_scipys() -> None:
    values = [random.Random(7).gauss(10.0, 1.0) for _ in range(1)] + [9.1, 10.4, 11.2, 9.9, 10.7, 8.8]
    found = cycle_statistics(values, interval="bootstrap")
    expected = scipy.stats.bootstrap(
        (values,), lambda x, axis: x.mean(axis=axis), method="percentile", n_resamples=10_000, rng=1
    )
    assert found is not None
    assert found.ci95_low == pytest.approx(expected.confidence_interval.low, abs=0.05)
    assert found.ci95_high == pytest.approx(expected.confidence_interval.high, abs=0.05)


def test_cycles_of_one_configuration_are_put_together_in_order_of_appearance() -> None:
    runs = [
        make_result(measurement_config_hash=config, avg_energy_per_token_j=energy, avg_tokens_per_second=100.0)
        for config, energy in (("b" * 16, 0.4), ("a" * 16, None), ("b" * 16, 0.6))
    ]
    first, second = summarise_configurations(runs)
    assert (first.measurement_config_hash, first.cycles) == ("b" * 16, 2)
    assert first.energy_per_token_j is not None
    assert first.energy_per_token_j.mean == pytest.approx(0.5)
    assert (second.cycles, second.energy_per_token_j) == (1, None)
    assert second.tokens_per_second is not None


def test_each_configuration_is_set_against_the_best_of_its_kind_with_its_label_and_its_warnings() -> None:
    guess = EnergyBreakdown(raw_j=1.0, method="model_estimate")
    results = [
        make_rich_result(measurement_config_hash="a", avg_energy_per_token_j=2.0, avg_tokens_per_second=100.0),
        make_rich_result(measurement_config_hash="b", avg_energy_per_token_j=1.0, avg_tokens_per_second=50.0),
        make_result(
            measurement_config_hash="c",
            avg_energy_per_token_j=0.1,
            avg_tokens_per_second=25.0,
            energy_breakdown=guess,
            measurement_warnings=[
                "energy_is_estimated: by a model",
                "thermal_drift_detected: 1",
                "thermal_drift_detected: 2",
            ],
        ),
        make_result(
            measurement_config_hash="c",
            avg_energy_per_token_j=0.3,
            avg_tokens_per_second=25.0,
            energy_breakdown=guess,
            measurement_warnings=["energy_is_estimated: by a model"],
        ),
        make_result(measurement_config_hash="d", total_energy_j=None, avg_energy_per_token_j=None),
    ]
    a, b, c, d = summarise_configurations(iter(results))
    assert [entry.energy_vs_best for entry in (a, b, c, d)] == [2.0, 1.0, 1.0, None]
    assert [entry.speed_vs_best for entry in (a, b, c, d)] == [1.0, 0.5, 0.25, 0.2]
    assert [entry.estimated for entry in (a, b, c, d)] == [False, False, True, False]
    assert c.warnings == {"energy_is_estimated": 2, "thermal_drift_detected": 1}
    assert a.ttft_ms is not None
    assert a.ttft_ms.mean == 142.0
    assert d.ttft_ms is None
