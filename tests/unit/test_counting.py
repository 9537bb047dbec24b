from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.metrics.counting import count_tokens, count_tokens_between, full_batch_interval
from llenergymeasure.exceptions import ExperimentError


def answered(started_s: float, times_s: list[float] | None, *, prompt: int = 10, index: int = 0) -> RequestOutput:
    return RequestOutput(
        index=index,
        input_tokens=prompt,
        token_ids=[7] * len(times_s or [0.0]),
        finish_reason="length",
        started_s=started_s,
        token_times_s=times_s,
    )


def test_every_id_counts_once() -> None:
    counts = count_tokens([answered(0.0, [1.0, 2.0, 3.0]), answered(0.0, [1.0], prompt=5)])
    assert (counts.input_tokens, counts.output_tokens, counts.requests) == (15, 4, 2)


def test_no_output_at_all_is_an_error_not_a_division_by_zero() -> None:
    with pytest.raises(ExperimentError, match="no output tokens"):
        count_tokens([])


def test_only_tokens_of_the_interval_count_and_input_counts_with_its_first_token() -> None:
    outputs = [answered(0.0, [1.0, 2.0, 3.0]), answered(2.0, [2.5, 3.5], prompt=5)]
    counts = count_tokens_between(outputs, 1.5, 3.0)
    assert (counts.input_tokens, counts.output_tokens, counts.requests) == (5, 3, 1)


@given(
    times=st.lists(st.floats(0.001, 10.0), min_size=1, max_size=30).map(sorted),
    cut=st.floats(0.0, 10.0),
)
def test_two_adjoining_intervals_hold_every_token_exactly_once(times: list[float], cut: float) -> None:
    outputs = [answered(0.0, times)]
    parts = 0
    for start_s, end_s in ((0.0, cut), (cut, 10.0)):
        try:
            parts += count_tokens_between(outputs, start_s, end_s).output_tokens
        except ExperimentError:
            continue  # an interval without tokens is refused; it holds none
    assert parts == len(times)


def test_an_engine_without_timestamps_cannot_be_measured_in_part() -> None:
    with pytest.raises(ExperimentError, match="no token timestamps"):
        count_tokens_between([answered(0.0, None)], 0.0, 1.0)


def test_an_interval_in_which_nothing_was_produced_says_what_to_change() -> None:
    with pytest.raises(ExperimentError, match="min_duration_seconds"):
        count_tokens_between([answered(0.0, [1.0])], 5.0, 6.0)


def test_the_batch_is_full_from_its_last_place_taken_to_its_first_that_stays_empty() -> None:
    # three places: 0-4, 1-5, 2-6, then 4-8 takes the freed one and 5-7 the next; from 6 on one stays empty
    spans = [(0.0, 4.0), (1.0, 5.0), (2.0, 6.0), (4.0, 8.0), (5.0, 7.0)]
    outputs = [answered(start_s, [end_s], index=i) for i, (start_s, end_s) in enumerate(spans)]
    assert full_batch_interval(outputs) == (2.0, 6.0)


def test_texts_before_each_token_are_what_a_run_without_cache_computes() -> None:
    five = RequestOutput(0, 10, [7] * 5, "length", 0.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert count_tokens([five]).texts_so_far == 10 + 11 + 12 + 13 + 14
    assert count_tokens_between([five], 1.5, 4.0).texts_so_far == 11 + 12 + 13
