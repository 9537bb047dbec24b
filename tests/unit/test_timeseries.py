from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_fakes import logged, measured, steady
from llenergymeasure.core.energy.integrate import integrate_power
from llenergymeasure.core.energy.telemetry import SamplerReport, Telemetry, TelemetrySample
from llenergymeasure.core.timeseries import has_samples, timeseries_columns, write_timeseries

COLUMNS = [
    "timestamp_s",
    "gpu_index",
    "power_w",
    "temperature_c",
    "memory_used_mb",
    "sm_utilisation_pct",
    "sm_clock_mhz",
    "throttle_reasons",
]


def test_there_is_a_row_per_second_and_gpu_and_the_last_one_covers_the_rest(tmp_path: Path) -> None:
    readings = {"temperature_c": 61.0, "memory_used_mb": 900.0, "sm_clock_mhz": 1500.0, "sm_utilisation_pct": 98.0}
    samples = steady(300.0, 0.0, 2.5, throttle_reasons=4, **readings)
    energy = measured({"GPU-a": samples, "GPU-b": steady(70.0, 0.0, 2.5)}, end_s=2.5)
    table = pq.read_table(write_timeseries(energy, tmp_path / "timeseries.parquet"))
    assert table.column_names == COLUMNS
    rows = table.to_pylist()
    assert [(row["timestamp_s"], row["gpu_index"]) for row in rows] == [(t, g) for g in (0, 1) for t in (0.0, 1.0, 2.0)]
    assert [row["power_w"] for row in rows] == pytest.approx([300.0] * 3 + [70.0] * 3)
    assert {name: rows[1][name] for name in readings} == pytest.approx(readings)
    assert rows[0]["throttle_reasons"] == 4
    assert rows[3]["throttle_reasons"] is None


def test_units_and_devices_are_in_the_file(tmp_path: Path) -> None:
    energy = measured({"GPU-a": steady(1.0, 0.0, 2.0)}, end_s=2.0)
    schema = pq.read_schema(write_timeseries(energy, tmp_path / "timeseries.parquet"))
    assert schema.field("power_w").metadata == {b"unit": b"W"}
    assert json.loads(schema.metadata[b"units"])["memory_used_mb"] == "MB"
    assert json.loads(schema.metadata[b"devices"]) == ["GPU-a"]


def test_what_sampling_cost_is_published_with_the_samples(tmp_path: Path) -> None:
    log = logged(steady(1.0, 0.0, 2.0))
    report = SamplerReport(ticks=20, missed_deadlines=1, cpu_s=0.004, duration_s=2.0, longest_tick_s=0.003)
    energy = replace(measured(None, end_s=2.0), telemetry=Telemetry({"GPU-a": log}, report))
    metadata = pq.read_schema(write_timeseries(energy, tmp_path / "timeseries.parquet")).metadata
    (sampler,) = json.loads(metadata[b"samplers"])
    assert (sampler["cpu_us_per_tick"], sampler["share_of_one_core"]) == (200.0, 0.002)
    assert sampler["missed_deadlines"] == 1


def test_the_processor_has_no_gpu_index(tmp_path: Path) -> None:
    energy = measured({"cpu": steady(40.0, 0.0, 1.0)}, end_s=1.0)
    assert pq.read_table(write_timeseries(energy, tmp_path / "a.parquet"))["gpu_index"].to_pylist() == [None]


def test_only_where_something_was_sampled_is_there_a_series() -> None:
    assert has_samples(measured({"GPU-a": [], "GPU-b": steady(70.0, 0.0, 1.0)}))
    assert not has_samples(measured({"GPU-a": []}))
    assert not has_samples(measured({}))
    assert not has_samples(measured(None))


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "timeseries.parquet").mkdir()
    with pytest.raises(OSError, match="timeseries"):
        write_timeseries(measured({"GPU-a": steady(1.0, 0.0, 2.0)}, end_s=2.0), tmp_path / "timeseries.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["timeseries.parquet"]


def series(samples: Sequence[TelemetrySample], start_s: float, end_s: float) -> Mapping[str, Sequence[Any]]:
    return timeseries_columns(measured({"GPU-0": samples}, start_s, end_s), "GPU-0")


traces = st.lists(st.tuples(st.floats(0.01, 1.7), st.floats(1.0, 1000.0)), min_size=2, max_size=60)


@given(traces, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_power_times_time_adds_up_to_the_integral(steps: list[tuple[float, float]], a: float, b: float) -> None:
    times, power, now_s = [], [], 100.0
    for step_s, power_w in steps:
        now_s += step_s
        times.append(now_s)
        power.append(power_w)
    start_s, end_s = sorted(times[0] + share * (times[-1] - times[0]) for share in (a, b))
    samples = [TelemetrySample(t, w) for t, w in zip(times, power, strict=True)]
    columns = series(samples, start_s, end_s)
    lengths = [min(1.0, end_s - start_s - timestamp_s) for timestamp_s in columns["timestamp_s"]]
    joules = sum((power_w or 0.0) * length for power_w, length in zip(columns["power_w"], lengths, strict=True))
    assert joules == pytest.approx(integrate_power(times, power, start_s, end_s), rel=1e-9, abs=1e-6)


def test_throttle_reasons_of_a_second_are_united_and_other_readings_averaged() -> None:
    samples = [
        TelemetrySample(-0.1, 100.0),
        TelemetrySample(0.2, 100.0, temperature_c=60.0, throttle_reasons=4),
        TelemetrySample(0.7, 100.0, temperature_c=62.0, throttle_reasons=0x40),
        TelemetrySample(1.1, 100.0),
    ]
    columns = series(samples, 0.0, 1.0)
    assert (columns["temperature_c"], columns["throttle_reasons"]) == ([61.0], [0x44])


def test_a_second_without_a_sample_shows_the_latest_one_and_the_line_through_it() -> None:
    samples = [TelemetrySample(0.0, 100.0, temperature_c=50.0), TelemetrySample(4.0, 500.0, temperature_c=60.0)]
    columns = series(samples, 0.0, 4.0)
    assert columns["power_w"] == pytest.approx([150.0, 250.0, 350.0, 450.0])
    assert columns["temperature_c"] == [50.0] * 4


@pytest.mark.parametrize(
    ("silent_s", "told_w"), [(1.5, [100.0, 500.0 / 3.0, 850.0 / 3.0, 300.0]), (2.5, [100.0, None, None, 300.0])]
)
def test_a_sample_that_gave_no_power_leaves_the_line_and_a_longer_silence_no_figure(
    silent_s: float, told_w: list[float | None]
) -> None:
    """100 W for a second, then nothing for a while, then 300 W."""
    ends_s = 1.0 + silent_s
    mute = [TelemetrySample(1.0 + share * silent_s, None) for share in (0.2, 0.7, 0.7)]
    samples = [TelemetrySample(t, 100.0) for t in (0.0, 1.0)]
    samples += [*mute, TelemetrySample(ends_s, 300.0), TelemetrySample(4.0, 300.0)]
    assert series(samples, 0.0, 4.0)["power_w"] == [w and pytest.approx(w) for w in told_w]


def test_a_device_that_fell_silent_has_rows_without_power() -> None:
    samples = [TelemetrySample(0.0, 100.0), TelemetrySample(1.0, 100.0), TelemetrySample(1.5, None)]
    assert series(samples, 0.0, 3.0)["power_w"] == [100.0, None, None]
