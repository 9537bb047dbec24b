"""The NVML meter in real time on scripted boards: a few windows through the real binding, sampler and clock."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.nvml.fixtures import ScriptedNvmlFactory
from tests.nvml.scripted import NVML_NOT_SUPPORTED, ScriptedGpu, fault_of
from tests.nvml.virtual import Counter
from tests.nvml.waveform import Waveform, constant, square

from energy_fakes import farthest_j
from llenergymeasure.core.energy.boards import SensorCalibration, save_calibration
from llenergymeasure.core.energy.select import select_energy_backend
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.domain.energy import comparative_half_width


def _measure(*gpus: ScriptedGpu, seconds: float, calibration_dir: Path | None = None) -> EnergyMeasurement:
    options = MeterOptions(calibration_dir=calibration_dir)
    meter = select_energy_backend("nvml", [gpu.uuid for gpu in gpus], options=options)
    handle = meter.start_tracking()
    time.sleep(seconds)
    energy = meter.stop_tracking(handle)
    assert energy.telemetry is not None
    energy.telemetry.close()
    return energy


def _truth_j(energy: EnergyMeasurement, *gpus: ScriptedGpu) -> float:
    return sum(gpu.energy_between_j(energy.start_s, energy.end_s) for gpu in gpus)


def test_the_counter_is_not_read_inside_the_window(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpu = scripted_nvml.gpu(power_w=300.0, counter_period_s=0.1)
    energy = _measure(gpu, seconds=1.0)
    assert gpu.counter_reads_between(energy.start_s, energy.end_s) == 0
    assert energy.total_j == pytest.approx(_truth_j(energy, gpu), rel=0.01)


@pytest.mark.parametrize(
    "waveform",
    [constant(300.0), square(120.0, 500.0, 0.7), square(100.0, 400.0, 0.23, duty=0.3)],
    ids=["steady", "square", "pulses"],
)
@pytest.mark.parametrize("known", [True, False], ids=["calibrated", "not calibrated"])
def test_short_windows_hold_the_truth_in_their_stated_interval(
    scripted_nvml: ScriptedNvmlFactory, waveform: Waveform, known: bool, tmp_path: Path
) -> None:
    """A counter that may as well add up what the sensor sees has a wider one, except where nothing changes."""
    gpu = ScriptedGpu.of("a100", waveform=waveform, counter=Counter(0.1, phase_s=0.037))
    scripted_nvml.play(gpu)
    if known:
        save_calibration(
            SensorCalibration(
                uuid=gpu.uuid,
                driver_version=open_nvml().driver_version(),
                taken_at="2026-01-01T00:00:00+00:00",
                power_source="power_instant",
                update_s=0.1,
                averaging_window_s=0.025,
                noise_w=0.0,
                idle_power_w=100.0,
                load_power_w=500.0,
                counter_follows_sensor=False,
            ),
            tmp_path,
        )
    energy = _measure(gpu, seconds=1.63, calibration_dir=tmp_path)
    assert energy.total_j is not None
    stated_j = comparative_half_width(energy.components)
    assert abs(energy.total_j - _truth_j(energy, gpu)) <= farthest_j(stated_j)
    assert (stated_j < 0.05 * energy.total_j) is (known or waveform == constant(300.0))


def test_samples_that_the_driver_takes_itself_need_no_calibration(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpu = ScriptedGpu.of("hopper", waveform=square(120.0, 500.0, 0.7), counter=Counter(0.1, phase_s=0.037))
    scripted_nvml.play(gpu)
    energy = _measure(gpu, seconds=3.0)
    assert energy.total_j is not None
    assert abs(energy.total_j - _truth_j(energy, gpu)) <= farthest_j(comparative_half_width(energy.components))
    assert comparative_half_width(energy.components) < 0.05 * energy.total_j
    assert energy.integral_j == pytest.approx(_truth_j(energy, gpu), rel=0.03)


def test_a_counter_that_adds_up_what_the_sensor_sees_is_held_too(scripted_nvml: ScriptedNvmlFactory) -> None:
    """The sensor looks for a quarter of the time."""
    swinging = square(100.0, 500.0, 0.4, 0.5)
    gpu = ScriptedGpu.of("a100", waveform=swinging, counter=Counter(0.1, 0.037, follows_sensor=True))
    scripted_nvml.play(gpu)
    energy = _measure(gpu, seconds=2.05)
    assert energy.total_j is not None
    assert abs(energy.total_j - _truth_j(energy, gpu)) <= farthest_j(comparative_half_width(energy.components))


def test_two_boards_with_counters_out_of_step_are_both_met(scripted_nvml: ScriptedNvmlFactory) -> None:
    first = ScriptedGpu.of("hopper", waveform=constant(300.0), counter=Counter(0.1, phase_s=0.01))
    second = ScriptedGpu.of("hopper", waveform=square(120.0, 500.0, 0.7), counter=Counter(0.1, phase_s=0.06))
    scripted_nvml.play(first, second)
    energy = _measure(first, second, seconds=1.5)
    assert energy.total_j is not None
    assert abs(energy.total_j - _truth_j(energy, first, second)) <= farthest_j(
        comparative_half_width(energy.components)
    )
    assert energy.per_gpu_j[first.uuid] == pytest.approx(_truth_j(energy, first), rel=0.02)


def test_without_a_counter_the_integral_is_the_answer(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpu = ScriptedGpu.of("pascal", waveform=constant(180.0))
    scripted_nvml.play(gpu)
    energy = _measure(gpu, seconds=1.2)
    assert energy.method == "power_integration"
    assert energy.total_j == pytest.approx(_truth_j(energy, gpu), rel=0.001)


def test_a_counter_that_is_refused_is_not_zero(scripted_nvml: ScriptedNvmlFactory) -> None:
    refused = [fault_of("nvmlDeviceGetTotalEnergyConsumption", NVML_NOT_SUPPORTED)]
    gpu = scripted_nvml.gpu(power_w=300.0, faults=refused)
    energy = _measure(gpu, seconds=0.8)
    assert energy.counter_j is None
    assert energy.total_j == pytest.approx(_truth_j(energy, gpu), rel=0.001)
