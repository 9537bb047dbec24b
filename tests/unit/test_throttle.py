from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_fakes import measured
from llenergymeasure.core.energy.spans import merge_spans
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.metrics.throttle import throttle_info

SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE, GPU_IDLE = 0x4, 0x8, 0x20, 0x40, 0x80, 0x1


def sample(time_s: float, reasons: int | None, temperature_c: float | None = 60.0) -> TelemetrySample:
    return TelemetrySample(time_s, 300.0, temperature_c=temperature_c, throttle_reasons=reasons)


def test_no_telemetry_means_not_known() -> None:
    assert throttle_info(measured(None)) is None
    assert throttle_info(measured({"GPU-0": [sample(1.0, None)]})) is None


def test_an_idle_or_busy_board_without_limits_is_not_throttled() -> None:
    info = throttle_info(measured({"GPU-0": [sample(0.0, GPU_IDLE), sample(10.0, 0), sample(20.0, 0)]}))
    assert info is not None
    assert not info.detected
    assert info.throttle_duration_sec == 0.0
    assert info.max_temperature_c == 60.0


@pytest.mark.parametrize(
    ("reasons", "true_fields"),
    [
        (SW_POWER_CAP, {"power"}),
        (HW_POWER_BRAKE, {"power", "hw_power"}),
        (SW_THERMAL, {"thermal", "sw_thermal"}),
        (HW_THERMAL, {"thermal", "hw_thermal"}),
        (HW_SLOWDOWN, set()),
        (SW_POWER_CAP | HW_THERMAL | GPU_IDLE, {"power", "thermal", "hw_thermal"}),
    ],
)
def test_each_reason_has_its_field(reasons: int, true_fields: set[str]) -> None:
    info = throttle_info(measured({"GPU-0": [sample(0.0, reasons), sample(20.0, 0)]}))
    assert info is not None
    assert info.detected
    kinds = {"thermal", "power", "sw_thermal", "hw_thermal", "hw_power"}
    assert {kind for kind in kinds if getattr(info, kind)} == true_fields


def test_duration_and_starts_hold_until_the_next_sample_and_stay_inside_the_window() -> None:
    reasons = [(-1.0, SW_THERMAL), (2.0, 0), (5.0, SW_THERMAL), (6.0, HW_THERMAL), (8.0, 0), (19.0, SW_THERMAL)]
    info = throttle_info(measured({"GPU-0": [sample(t, r) for t, r in [*reasons, (25.0, 0)]]}))
    assert info is not None
    assert info.throttle_duration_sec == pytest.approx(2.0 + 3.0 + 1.0)
    assert info.throttle_timestamps == pytest.approx([0.0, 5.0, 19.0])


def test_what_happened_before_and_after_the_window_does_not_count() -> None:
    samples = [sample(-5.0, HW_THERMAL, 95.0), sample(-1.0, 0), sample(10.0, 0), sample(21.0, HW_THERMAL, 95.0)]
    info = throttle_info(measured({"GPU-0": samples}))
    assert info is not None
    assert not info.detected
    assert info.max_temperature_c == 60.0


def test_two_boards_throttling_at_once_count_once() -> None:
    first = [sample(0.0, SW_POWER_CAP), sample(10.0, 0), sample(20.0, 0)]
    second = [sample(0.0, 0), sample(5.0, SW_POWER_CAP), sample(15.0, 0), sample(20.0, 0)]
    info = throttle_info(measured({"GPU-0": first, "GPU-1": second}))
    assert info is not None
    assert info.throttle_duration_sec == pytest.approx(15.0)


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 10)).map(lambda pair: (pair[0], pair[0] + pair[1])))


@given(spans)
def test_merged_spans_cover_the_same_seconds_without_touching(given_spans: list[tuple[int, int]]) -> None:
    merged = merge_spans(given_spans)
    seconds = {second for start, end in given_spans for second in range(start, end)}
    assert {second for start, end in merged for second in range(int(start), int(end))} == seconds
    assert all(before[1] < after[0] for before, after in itertools.pairwise(merged))
