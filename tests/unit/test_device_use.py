from __future__ import annotations

import pytest

from energy_fakes import listed
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.metrics.device_use import device_memory_mb, device_utilisation_pct


def samples(*used_mb: float | None) -> list[TelemetrySample]:
    """One sample a second, from 0 s on."""
    return [TelemetrySample(float(i), 300.0, memory_used_mb=used) for i, used in enumerate(used_mb)]


def test_the_most_of_each_device_within_the_window_is_added_up() -> None:
    telemetry = listed({"GPU-0": samples(900.0, 100.0, 150.0, 120.0), "GPU-1": samples(10.0, 20.0, None, 30.0)})
    assert device_memory_mb(telemetry, 1.0, 3.0) == pytest.approx(150.0 + 30.0)


def test_a_device_that_does_not_tell_makes_the_sum_unknown() -> None:
    telemetry = listed({"GPU-0": samples(100.0, 100.0), "GPU-1": samples(None, None)})
    assert device_memory_mb(telemetry, 0.0, 1.0) is None
    assert device_memory_mb(None, 0.0, 1.0) is None


def test_utilisation_is_the_mean_of_the_windows_readings_and_of_the_devices() -> None:
    def busy(*pct: float | None) -> list[TelemetrySample]:
        return [TelemetrySample(float(i), 300.0, sm_utilisation_pct=share) for i, share in enumerate(pct)]

    telemetry = listed({"GPU-0": busy(0.0, 0.0, 20.0, None, 40.0), "GPU-1": busy(0.0, 0.0, 100.0, 100.0, 100.0)})
    assert device_utilisation_pct(telemetry, 1.0, 4.0) == pytest.approx(65.0)
    assert device_utilisation_pct(telemetry, 1.0, 1.9) is None  # a reading is of the second before it
    assert device_utilisation_pct(listed({"GPU-0": busy(None, None)}), 0.0, 1.0) is None
