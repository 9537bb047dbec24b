from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from energy_fakes import measured, steady
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.energy.types import EnergyMeasurement, GpuWindow
from llenergymeasure.core.metrics.warnings import window_warnings
from llenergymeasure.domain.warnings import WarningCode


def codes(energy: EnergyMeasurement) -> set[WarningCode]:
    return {warning.code for warning in window_warnings(energy)}


def ramp(**columns: tuple[float, float]) -> list[TelemetrySample]:
    """200 samples over 20 s whose named columns go straight from one value to the other."""
    return [
        TelemetrySample(i / 10, 300.0, **{k: a + (b - a) * i / 199 for k, (a, b) in columns.items()})  # type: ignore[arg-type]
        for i in range(200)
    ]


def test_a_long_steady_window_raises_no_doubt() -> None:
    samples = steady(300.0, 0.0, 20.0, temperature_c=60.0, sm_clock_mhz=1500.0, throttle_reasons=0)
    assert codes(measured({"GPU-0": samples})) == set()


@pytest.mark.parametrize(("length_s", "short"), [(9.99, True), (10.0, False)])
def test_windows_below_ten_seconds_are_short(length_s: float, short: bool) -> None:
    energy = measured(None, end_s=length_s)
    assert (WarningCode.SHORT_MEASUREMENT_DURATION in codes(energy)) is short


def test_the_shortest_window_has_a_length_that_can_be_read() -> None:
    (warning,) = (w for w in window_warnings(measured(None, end_s=0.004)) if "lasted" in w.message)
    assert warning.message.startswith("the window lasted 4.00 ms, less than 10 s")


def on_gpus(samples: Sequence[TelemetrySample]) -> EnergyMeasurement:
    """These samples by one of this package's own meters of GPUs."""
    window = GpuWindow(0.0, 20.0, (), sampling_interval_s=0.1, gain_uncertainty_pct=5.0, meter="nvml")
    return replace(measured({"GPU-0": samples}), gpu_window=window)


@pytest.mark.parametrize(("inside", "low"), [(9, True), (10, False)])
def test_fewer_than_ten_samples_inside_the_window_are_few(inside: int, low: bool) -> None:
    samples = [TelemetrySample(-1.0, 300.0), *(TelemetrySample(float(i), 300.0) for i in range(inside))]
    energy = on_gpus([*samples, TelemetrySample(21.0, 300.0)])
    assert (WarningCode.NVML_LOW_SAMPLE_COUNT in codes(energy)) is low


def test_samples_without_power_do_not_count_and_other_meters_are_not_held_to_nvml() -> None:
    silent = [TelemetrySample(float(i), None) for i in range(20)]
    assert WarningCode.NVML_LOW_SAMPLE_COUNT in codes(on_gpus(silent))
    assert WarningCode.NVML_LOW_SAMPLE_COUNT not in codes(measured({"cpu": silent}))


@pytest.mark.parametrize(("rise_c", "drifted"), [(5.0, False), (5.5, True), (-6.0, True)])
def test_more_than_five_degrees_across_the_window_is_drift(rise_c: float, drifted: bool) -> None:
    energy = measured({"GPU-0": ramp(temperature_c=(60.0, 60.0 + rise_c))})
    assert (WarningCode.THERMAL_DRIFT_DETECTED in codes(energy)) is drifted


def test_a_die_that_is_hotter_for_a_moment_has_not_drifted() -> None:
    """As seen on an H200: 39 °C, and 46 °C in the one reading that falls into a prefill."""
    warm, hot = (TelemetrySample(0.0, 300.0, temperature_c=c) for c in (39.0, 46.0))
    samples = [replace(hot if i % 13 == 12 else warm, time_s=i / 10) for i in range(200)]
    assert WarningCode.THERMAL_DRIFT_DETECTED not in codes(measured({"GPU-0": samples}))


@pytest.mark.parametrize(("last_mhz", "drifted"), [(1500.0, False), (1450.0, False), (1300.0, True), (1700.0, True)])
def test_clocks_that_change_by_more_than_a_twentieth_have_drifted(last_mhz: float, drifted: bool) -> None:
    energy = measured({"GPU-0": ramp(sm_clock_mhz=(1500.0, last_mhz))})
    assert (WarningCode.CLOCKS_DRIFTED in codes(energy)) is drifted


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (0x40, {WarningCode.THERMAL_THROTTLING}),
        (0x04, {WarningCode.POWER_THROTTLING}),
        (0x44, {WarningCode.THERMAL_THROTTLING, WarningCode.POWER_THROTTLING}),
        (0x08, {WarningCode.THERMAL_THROTTLING}),
        (0x01, set()),
    ],
)
def test_throttling_is_told_by_its_cause(reasons: int, expected: set[WarningCode]) -> None:
    samples = steady(300.0, 0.0, 20.0, throttle_reasons=reasons)
    assert codes(measured({"GPU-0": samples})) == expected


def test_every_device_is_looked_at() -> None:
    hot = ramp(temperature_c=(50.0, 70.0))
    cool = steady(300.0, 0.0, 20.0, temperature_c=60.0)
    (warning,) = window_warnings(measured({"GPU-0": cool, "GPU-1": hot}))
    assert "GPU-1" in warning.message
    assert "50" in warning.message
    assert "70" in warning.message
