from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llenergymeasure.domain.latency import RequestTimings, histogram, percentile, percentiles, pool_latencies

values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


@given(values, st.floats(0, 100))
def test_percentile_is_numpys_default(numbers: list[float], q: float) -> None:
    assert percentile(sorted(numbers), q) == pytest.approx(float(np.percentile(numbers, q)), rel=1e-9, abs=1e-6)


def test_percentile_interpolates_between_order_statistics() -> None:
    assert percentile([10.0, 20.0], 50) == 15.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 25) == 1.75
    assert percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(("ordered", "q"), [([], 50), ([1.0], -1), ([1.0], 100.5)])
def test_percentile_refuses_what_has_no_answer(ordered: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(ordered, q)


@given(values)
def test_statistics_are_ordered_and_within_the_values(numbers: list[float]) -> None:
    found = percentiles(numbers)
    assert found is not None
    assert found.min <= found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max
    assert found.min <= found.mean <= found.max
    assert (found.min, found.max, found.count) == (min(numbers), max(numbers), len(numbers))


@given(values)
def test_histogram_counts_every_value_once_within_its_bin(numbers: list[float]) -> None:
    found = histogram(numbers)
    assert found is not None
    assert sum(found.counts) == len(numbers)
    assert len(found.bin_edges) == len(found.counts) + 1
    assert found.bin_edges == sorted(found.bin_edges)
    assert (found.bin_edges[0], found.bin_edges[-1]) == (min(numbers), max(numbers))


def test_no_values_have_no_statistics() -> None:
    assert percentiles([]) is None
    assert histogram([]) is None
    assert pool_latencies([]) is None


def test_tpot_leaves_out_the_first_token_and_single_token_requests() -> None:
    timings = RequestTimings(input_tokens=[5, 5], output_tokens=[5, 1], e2e_ms=[500.0, 100.0], ttft_ms=[100.0, 100.0])
    assert timings.tpot_ms() == [100.0]


def test_latencies_are_pooled_not_averaged() -> None:
    many_fast = RequestTimings(input_tokens=[1] * 99, output_tokens=[1] * 99, e2e_ms=[10.0] * 99)
    one_slow = RequestTimings(input_tokens=[1], output_tokens=[1], e2e_ms=[1000.0])
    pooled = pool_latencies([many_fast, one_slow])
    assert pooled is not None
    assert pooled.e2e_ms is not None
    assert pooled.e2e_ms.mean == pytest.approx((99 * 10 + 1000) / 100)  # an average of averages would say 505
    assert pooled.e2e_ms.p50 == 10.0
    assert pooled.ttft_ms is None
    assert pooled.itl_ms is None


def test_request_columns_must_match() -> None:
    with pytest.raises(ValidationError, match=r"e2e_ms has 1 entries for 2 requests"):
        RequestTimings(input_tokens=[1, 1], output_tokens=[1, 1], e2e_ms=[1.0])


@given(st.lists(st.floats(0, 1e6, width=32), max_size=100))
def test_inter_token_gaps_survive_json_at_four_bytes_each(gaps: list[float]) -> None:
    timings = RequestTimings(input_tokens=[1], output_tokens=[2], e2e_ms=[1.5], itl_ms=gaps)
    text = timings.model_dump_json()
    assert RequestTimings.model_validate_json(text) == timings
    assert timings.itl_ms is not None
    assert list(timings.itl_ms) == gaps
    assert timings.itl_ms.itemsize == 4


def test_a_million_gaps_take_a_few_bytes_each_on_disk() -> None:
    timings = RequestTimings(input_tokens=[1], output_tokens=[2], e2e_ms=[1.5], itl_ms=[24.7] * 1_000_000)
    assert len(timings.model_dump_json()) < 6_000_000


@pytest.mark.parametrize("wrong", ["not base64!", "AAA=", [math.nan], ["x"], 5])
def test_damaged_columns_are_refused(wrong: object) -> None:
    with pytest.raises(ValidationError, match="itl_ms"):
        RequestTimings(input_tokens=[1], output_tokens=[2], e2e_ms=[1.5], itl_ms=wrong)
