"""Gaps between tokens that are far beyond the usual ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pytest

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.metrics.stalls import find_stalls, generation_warnings
from llenergymeasure.domain.warnings import WarningCode


def output(gaps_s: Sequence[float], started_s: float = 0.0) -> RequestOutput:
    """A text whose tokens came after these gaps."""
    times_s = [started_s + time_s for time_s in accumulate(gaps_s)]
    return RequestOutput(0, 3, [7] * len(times_s), "length", started_s, times_s)


def codes(outputs: Sequence[RequestOutput], window_s: float, compilations: int = 0) -> list[WarningCode]:
    return [warning.code for warning in generation_warnings(outputs, compilations, (0.0, window_s))]


def test_a_step_far_beyond_the_median_is_a_stall_once_for_the_whole_batch() -> None:
    batch = [output([0.1, *[0.01] * 20, 3.0, *[0.01] * 20])] * 3
    (stall,) = find_stalls(batch)
    assert stall[1] - stall[0] == pytest.approx(3.0)
    assert codes(batch, 3.5) == [WarningCode.GENERATION_STALLED]


def test_a_first_token_is_compared_with_first_tokens() -> None:
    usual = [output([0.5, 0.01, 0.01], started_s=float(i)) for i in range(5)]
    assert list(find_stalls(usual)) == []
    late = output([15.0, 0.01, 0.01], started_s=5.0)
    (stall,) = find_stalls([*usual, late])
    assert stall == pytest.approx((5.0, 20.0))


def test_tokens_accepted_together_have_no_gap_of_their_own() -> None:
    assert list(find_stalls([output([0.1, *[0.0, 0.0, 0.02] * 10])])) == []


def test_a_stall_that_hardly_matters_is_not_warned_about() -> None:
    assert codes([output([0.1, *[0.01] * 2000, 0.3])], 20.4) == []


def test_compilations_are_told_whatever_the_gaps() -> None:
    assert codes([output([0.1, 0.01])], 1.0, compilations=2) == [WarningCode.COMPILED_IN_WINDOW]


def test_requests_that_were_computed_again_are_counted_and_so_are_the_times() -> None:
    outputs = [replace(output([0.1, 0.01]), preemptions=times) for times in (0, 2, 1)]
    (warning,) = generation_warnings(outputs, 0, (0.0, 1.0))
    assert str(warning).startswith("requests_preempted: 2 of 3 requests lost their key-value cache, 3 times,")


def test_without_time_stamps_there_is_nothing_to_tell() -> None:
    assert codes([RequestOutput(0, 3, [7], "length", 0.0)], 1.0) == []
