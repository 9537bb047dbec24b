"""Calibration in real time through the real binding, and what measurements make of it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.nvml.fixtures import ScriptedNvmlFactory
from tests.nvml.scripted import ScriptedGpu
from tests.nvml.virtual import Sensor

from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.boards import calibrations_of, known_sampling, save_calibration
from llenergymeasure.core.energy.calibrate import calibrate
from llenergymeasure.core.energy.select import select_energy_backend
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.gpu.driver import find_gpus
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.exceptions import EnergyError


class ScriptedLoad:
    """Makes a scripted board draw 400 W."""

    def __init__(self, gpu: ScriptedGpu) -> None:
        self._gpu = gpu

    def start(self) -> None:
        self._gpu.set_power_now(400.0)

    def stop(self) -> None:
        self._gpu.set_power_now(80.0)


def test_a_boards_sensor_is_found_and_used_from_then_on(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    odd = Sensor(window_s=0.04, update_s=0.08, phase_s=0.03, noise_w=1.0)  # like no known architecture
    gpu = scripted_nvml.gpu(power_w=80.0, instant=odd)
    clock, nvml = SystemClock(), open_nvml()
    (board,) = find_gpus([gpu.uuid], nvml)
    found = calibrate(
        board,
        ScriptedLoad(gpu),
        clock,
        draw=random.Random(1),
        long_stretches=4,
        short_stretches=24,
        counter_stretches=8,
    )
    assert found.power_source == "power_instant"
    assert found.update_s == pytest.approx(0.08, rel=0.01)
    assert found.averaging_window_s == pytest.approx(0.04, abs=0.01)
    assert found.counter_period_s == pytest.approx(0.1, rel=0.01)
    assert found.counter_follows_sensor is not True

    save_calibration(found, tmp_path)
    calibration = calibrations_of([board], tmp_path)[gpu.uuid]
    assert known_sampling(board, "power_instant", calibration) == found.sampling
    assert known_sampling(board, "power_usage", calibration) != found.sampling

    save_calibration(replace(found, driver_version="999.1"), tmp_path)
    assert calibrations_of([board], tmp_path)[gpu.uuid] == found


def test_a_broken_calibration_is_an_error_that_names_the_file(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path
) -> None:
    gpu = scripted_nvml.gpu(power_w=80.0)
    driver = open_nvml().driver_version()
    (tmp_path / f"{gpu.uuid}_{driver}.json").write_text("{}", encoding="utf-8")
    with pytest.raises(EnergyError, match=r"\.json is not a sensor calibration"):
        select_energy_backend("nvml", (gpu.uuid,), options=MeterOptions(calibration_dir=tmp_path))
