"""The raw trace: what is written comes back unchanged, and the same joules come out of it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.nvml.virtual_run import random_board, run_window
from tests.nvml.waveform import square

from energy_fakes import listed, measured, rows, steady
from llenergymeasure.core.energy.gpu_energy import gpu_measurement, read_trace, recompute_energy, write_trace
from llenergymeasure.core.energy.host_energy import host_measurement
from llenergymeasure.core.energy.integrate import energy_between
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.energy.types import BoardRecord, EnergyMeasurement, GpuWindow, HostCounter, HostWindow
from llenergymeasure.exceptions import PersistenceError


def measured_on_gpu(*, counter: bool = True) -> EnergyMeasurement:
    """Five seconds of a square wave on a board with or without a counter, one of whose samples has no power."""
    draw = random.Random(8)
    board = random_board("hopper", square(120.0, 500.0, 0.7), draw)
    window = run_window(board, 5.0, draw)
    record = BoardRecord("GPU-0", "GPU-0", counter, window.before, window.after, sensor=window.sensor)
    more = {"temperature_c": 45.5, "throttle_reasons": 4, "power_source": "power_instant"}
    samples = [TelemetrySample(t, w, **more) for t, w in window.samples]  # type: ignore[arg-type]
    samples.insert(3, TelemetrySample(samples[2].time_s, None))
    gpu_window = GpuWindow(window.start_s, window.end_s, (record,), 0.1, 5.0, "nvml")
    return gpu_measurement(gpu_window, listed({"GPU-0": samples}))


OLD_TRACES = Path(__file__).parents[1] / "data" / "traces"
"""Traces of windows on scripted boards and their figures, both written by version 2.0.0."""


def same_figures(one: EnergyMeasurement, other: EnergyMeasurement) -> bool:
    return replace(one, telemetry=None) == replace(other, telemetry=None)


def measured_on_host() -> EnergyMeasurement:
    """Twenty seconds of a processor and its memory."""
    counters = (HostCounter("package-0", "package", 1600.0 + 1.0 / 3.0), HostCounter("package-0 dram", "dram", 70.1))
    return host_measurement(HostWindow(0.0, 20.0, counters, 0.2, 5.0, "rapl"), listed({"cpu": steady(83.5, 0.0, 20.0)}))


@pytest.mark.parametrize("counted", [None, (1.0 / 3.0, 17.7)])
def test_the_joules_of_a_processor_come_again_too(counted: tuple[float, float] | None, tmp_path: Path) -> None:
    energy = measured_on_host()
    assert energy.total_j == pytest.approx(1670.43, abs=0.01)
    said = energy if counted is None else energy_between(energy, *counted)
    assert said.total_j is not None
    assert same_figures(recompute_energy(write_trace(energy, tmp_path / "trace.parquet", counted)), said)


@pytest.mark.parametrize("counter", [True, False])
def test_the_joules_computed_again_are_the_same_to_the_last_bit(counter: bool, tmp_path: Path) -> None:
    energy = measured_on_gpu(counter=counter)
    assert energy.method == ("hardware_counter" if counter else "power_integration")
    again = recompute_energy(write_trace(energy, tmp_path / "trace.parquet"))
    assert same_figures(again, energy)


def test_of_a_counted_part_its_own_joules_come_back(tmp_path: Path) -> None:
    energy = measured_on_gpu()
    counted = (energy.start_s + 1.0 / 3.0, energy.end_s - 0.1)
    part = energy_between(energy, *counted)
    assert part.total_j is not None
    assert same_figures(recompute_energy(write_trace(energy, tmp_path / "trace.parquet", counted)), part)


def test_every_sample_and_reading_comes_back_unchanged(tmp_path: Path) -> None:
    energy = measured_on_gpu()
    window, telemetry = read_trace(write_trace(energy, tmp_path / "trace.parquet"))
    assert window == energy.gpu_window
    assert energy.telemetry is not None
    assert rows(telemetry.blocks("GPU-0")) == rows(energy.telemetry.blocks("GPU-0"))


@pytest.mark.parametrize("name", ["whole", "part"])
def test_a_trace_of_an_earlier_release_gives_its_joules_to_the_last_bit(name: str) -> None:
    energy = recompute_energy(OLD_TRACES / f"{name}.parquet")
    assert energy.audit is not None
    figures = {
        "total_j": energy.total_j,
        "method": energy.method,
        "per_gpu_j": energy.per_gpu_j,
        "counter_j": energy.counter_j,
        "integral_j": energy.integral_j,
        "fused_j": energy.fused_j,
        "disagreement_pct": energy.audit.disagreement_pct,
        "half_widths_j": {component.name: component.half_width_j for component in energy.components},
    }
    assert figures == json.loads((OLD_TRACES / "energy.json").read_text(encoding="utf-8"))[name]


def test_a_trace_without_a_window_holds_nothing_to_compute(tmp_path: Path) -> None:
    path = write_trace(measured({"cpu": steady(80.0, 0.0, 20.0)}), tmp_path / "trace.parquet")
    with pytest.raises(PersistenceError, match="no window on GPUs"):
        recompute_energy(path)


@pytest.mark.parametrize("content", [None, b"PAR1 is how it begins, and nothing more", b""])
def test_what_is_not_a_trace_is_an_error_that_names_the_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PersistenceError, match=r"trace\.parquet"):
        recompute_energy(path)


def test_without_samples_there_is_no_trace_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without power samples"):
        write_trace(measured(None), tmp_path / "trace.parquet")
    assert not list(tmp_path.iterdir())
