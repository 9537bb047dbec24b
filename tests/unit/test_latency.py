from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.metrics.latency import request_timings


def output(
    times_s: list[float] | None, started_s: float = 100.0, queued_s: float = 0.0, index: int = 0
) -> RequestOutput:
    count = 3 if times_s is None else len(times_s)
    return RequestOutput(
        index=index,
        input_tokens=7,
        token_ids=array("i", range(count)),
        finish_reason="length",
        started_s=started_s,
        token_times_s=None if times_s is None else memoryview(array("d", times_s)),
        queued_s=queued_s,
    )


def test_ttft_runs_from_the_start_on_the_request_to_its_first_token() -> None:
    timings = request_timings([output([100.25, 100.30, 100.40])])
    assert timings is not None
    assert list(timings.ttft_ms or ()) == pytest.approx([250.0])
    assert list(timings.itl_ms or ()) == pytest.approx([50.0, 100.0], rel=1e-6)
    assert list(timings.e2e_ms) == pytest.approx([400.0])
    assert timings.tpot_ms() == pytest.approx([75.0])


def test_waiting_in_the_queue_is_beside_the_latencies_not_in_them() -> None:
    timings = request_timings([output([100.25], queued_s=3.0)])
    assert timings is not None
    assert list(timings.queue_ms or ()) == [3000.0]
    assert list(timings.ttft_ms or ()) == pytest.approx([250.0])


def test_one_token_has_a_ttft_and_no_gap() -> None:
    timings = request_timings([output([100.25])])
    assert timings is not None
    assert list(timings.itl_ms or ()) == []
    assert timings.tpot_ms() == []


def test_a_stall_appears_in_the_gap_of_its_token() -> None:
    times_s = [100.1 + 0.01 * step + (0.05 if step >= 7 else 0.0) for step in range(12)]
    timings = request_timings([output(times_s)])
    assert timings is not None
    gaps_ms = list(timings.itl_ms or ())
    assert gaps_ms[6] == pytest.approx(60.0, abs=0.01)
    assert [gap for position, gap in enumerate(gaps_ms) if position != 6] == pytest.approx([10.0] * 10, abs=0.01)


def test_gaps_never_span_two_requests() -> None:
    timings = request_timings([output([100.1, 100.2], index=0), output([500.1, 500.3], started_s=500.0, index=1)])
    assert timings is not None
    assert list(timings.itl_ms or ()) == pytest.approx([100.0, 200.0], rel=1e-6)


def test_an_engine_that_times_some_requests_only_gets_no_figures() -> None:
    assert request_timings([output([100.1]), output(None, index=1)]) is None
    assert request_timings([]) is None


@given(
    st.lists(
        st.lists(st.floats(0.0001, 10.0), min_size=1, max_size=20),
        min_size=1,
        max_size=8,
    )
)
def test_ttft_and_gaps_add_up_to_the_whole(steps: list[list[float]]) -> None:
    outputs = []
    for index, gaps in enumerate(steps):
        times, now = [], 100.0
        for gap in gaps:
            now += gap
            times.append(now)
        outputs.append(output(times, index=index))
    timings = request_timings(outputs)
    assert timings is not None
    assert sum(timings.ttft_ms or ()) + sum(timings.itl_ms or ()) == pytest.approx(sum(timings.e2e_ms), rel=1e-5)
    assert len(timings.itl_ms or ()) == sum(len(gaps) - 1 for gaps in steps)
