from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_fakes import ListedTelemetry, measured, steady
from llenergymeasure.core.energy.counter import CounterRead
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.gpu_window import BoardRecord, GpuWindow, RecordedWindow
from llenergymeasure.core.energy.types import EnergyMeasurement, TelemetrySample
from llenergymeasure.core.trace import read_trace, recompute_energy, write_trace
from llenergymeasure.exceptions import PersistenceError


def recorded(power_w: list[float], edge_s: float) -> EnergyMeasurement:
    """Two boards with awkward numbers: one counted, one without a counter."""
    start_s, step_s = 1000.0 + edge_s, 0.1 + edge_s / 1e3
    end_s = start_s + (len(power_w) - 3) * step_s
    samples = [
        TelemetrySample(start_s + (i - 1) * step_s, watts, temperature_c=40.0 + i / 7, throttle_reasons=i)
        for i, watts in enumerate(power_w)
    ]
    energy_j = sum(power_w[1:-1]) * step_s
    before = (CounterRead(start_s - 0.002, start_s - 0.001, 10.0), CounterRead(start_s - 0.0005, start_s, 10.0 + 1 / 3))
    after = (
        CounterRead(end_s, end_s + 1e-4, 10.4 + energy_j),
        CounterRead(end_s + 0.05, end_s + 0.0501, 50 + energy_j),
    )
    counted = BoardRecord("GPU-0", "GPU-0", has_counter=True, before=before, after=after, power_limit_w=None)
    window = GpuWindow(start_s, end_s, (counted, BoardRecord("GPU-1", "GPU-1", has_counter=False)), 0.1, 5.0, "nvml")
    return gpu_measurement(RecordedWindow(window, ListedTelemetry({"GPU-0": samples, "GPU-1": samples[:]})))


@settings(max_examples=25)
@given(st.lists(st.floats(1.0, 1000.0), min_size=8, max_size=60), st.floats(0.0, 1.0))
def test_energy_is_computed_again_to_the_last_bit(power_w: list[float], edge_s: float) -> None:
    energy = recorded(power_w, edge_s)
    with tempfile.TemporaryDirectory() as directory:
        again = recompute_energy(write_trace(energy, Path(directory) / "trace.parquet"))
    assert replace(again, telemetry=None) == replace(energy, telemetry=None)


def test_every_sample_and_reading_is_in_the_file(tmp_path: Path) -> None:
    energy = recorded([100.0, 200.0, 300.0, 200.0, 100.0, 50.0, 25.0, 12.0], 0.5)
    trace = read_trace(write_trace(energy, tmp_path / "trace.parquet"))
    assert isinstance(energy.telemetry, RecordedWindow)
    assert trace.window == energy.telemetry.window
    assert trace.devices == ("GPU-0", "GPU-1")
    for device in trace.devices:
        assert list(trace.samples(device)) == list(energy.telemetry.samples(device))


def test_a_trace_without_a_gpu_window_keeps_its_samples_and_says_what_it_lacks(tmp_path: Path) -> None:
    path = write_trace(measured({"cpu": steady(40.0, 0.0, 2.0)}), tmp_path / "trace.parquet")
    assert pq.read_table(path).num_rows == 22
    with pytest.raises(PersistenceError, match="no window on GPUs"):
        recompute_energy(path)


def test_a_window_without_samples_has_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without power samples"):
        write_trace(measured(None), tmp_path / "trace.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1 and then something else"])
def test_a_file_that_is_no_trace_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    path.write_bytes(content)
    with pytest.raises(PersistenceError, match="is not a trace"):
        recompute_energy(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match="is not a trace"):
        recompute_energy(tmp_path / "none.parquet")
