"""A sensor's behaviour in time is found from its response to a load, for every architecture with known sensors."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tests.nvml.virtual import ARCHITECTURES, Board, Sensor
from tests.nvml.virtual_run import VirtualClock, random_board
from tests.nvml.waveform import constant

from fake_nvml import FakeGpu, FakeNvml
from llenergymeasure.core.energy.boards import (
    SensorCalibration,
    describe_sensor,
    known_sampling,
    load_calibration,
    save_calibration,
)
from llenergymeasure.core.energy.calibrate import ResponseError, calibrate, describe, find_updates, main
from llenergymeasure.core.energy.counter_kind import counter_follows_sensor
from llenergymeasure.core.energy.types import SensorDescription
from llenergymeasure.core.gpu.driver import PowerReading, find_gpus
from llenergymeasure.exceptions import EnergyError, PersistenceError

IDLE_W, LOAD_W = 70.0, 420.0
CALL_S = 20e-6


class SwitchedLoad:
    """Sets a virtual board's power a moment after it is told to."""

    def __init__(self, board: Board, clock: VirtualClock, latency_s: float = 0.002) -> None:
        self._board, self._clock, self._latency_s = board, clock, latency_s

    def start(self) -> None:
        self._board.set_power(LOAD_W, self._clock.now() + self._latency_s)

    def stop(self) -> None:
        self._board.set_power(IDLE_W, self._clock.now() + self._latency_s)


def _calibrate(
    board: Board, clock: VirtualClock, *, load: bool = True, latency_s: float = 0.002, short_stretches: int = 100
) -> SensorCalibration:
    def power_w() -> float:
        clock.sleep(CALL_S)
        return board.power_reading_w(clock.now())

    def counter_j() -> float:
        clock.sleep(CALL_S)
        return board.counter_reading_j(clock.now())

    readings: dict[str, object] = {"power_instant": lambda: PowerReading(power_w(), None, "gpu")}
    if board.counter:
        readings["total_energy_j"] = counter_j
    (gpu,) = find_gpus(["GPU-1"], FakeNvml(FakeGpu("GPU-1", readings=readings)))
    switched = SwitchedLoad(board, clock, latency_s) if load else SwitchedLoad(Board(), clock)
    return calibrate(gpu, switched, clock, draw=random.Random(1), short_stretches=short_stretches)


def _board(sensor: Sensor, seed: int, counter_of: str = "hopper") -> Board:
    board = random_board(counter_of, constant(IDLE_W), random.Random(seed))
    board.instant = replace(sensor, phase_s=random.Random(seed).uniform(0.0, sensor.update_s), noise_w=1.5)
    return board


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architectures_sensor_is_recovered(architecture: str) -> None:
    kind = ARCHITECTURES[architecture]
    found = _calibrate(_board(kind.instant, 3, architecture), VirtualClock(10.0))
    assert found.update_s == pytest.approx(kind.instant.update_s, rel=0.002)
    assert found.averaging_window_s == pytest.approx(kind.instant.window_s, rel=0.1, abs=0.002)
    assert found.sampled_share == pytest.approx(min(1.0, kind.instant.window_s / kind.instant.update_s), abs=0.1)
    assert found.noise_w == pytest.approx(1.5, rel=0.3)
    assert found.idle_power_w == pytest.approx(IDLE_W, abs=1.0)
    assert found.load_power_w == pytest.approx(LOAD_W, abs=1.0)
    if kind.counter:
        assert found.counter_period_s == pytest.approx(0.1, rel=0.01)
    else:
        assert found.counter_period_s is None


@pytest.mark.parametrize(
    ("architecture", "follows"),
    [("volta", True), ("volta", False), ("hopper", True), ("hopper", False), ("turing", True)],
)
def test_it_tells_whether_the_counter_adds_up_what_the_sensor_sees(architecture: str, follows: bool) -> None:
    for seed in (2, 3):
        board = _board(ARCHITECTURES[architecture].instant, seed, architecture)
        assert board.counter is not None
        board.counter, board.buffer = replace(board.counter, follows_sensor=follows), None
        found = _calibrate(board, VirtualClock(10.0), short_stretches=10)
        assert found.counter_follows_sensor is follows
        assert ("also what the sensor misses" in describe(found)) is not follows


def test_reading_the_counter_may_take_long_and_delay_the_sensor() -> None:
    board, clock, draw = _board(Sensor(0.025, 0.1), 3), VirtualClock(10.0), random.Random(5)
    delayed, published = False, [(10.0, IDLE_W)]
    next_s = 10.05

    def power_w() -> PowerReading:
        nonlocal next_s
        clock.sleep(CALL_S)
        while next_s <= clock.now():
            published.append((next_s, board.true_energy_j(next_s - 0.025, next_s) / 0.025 + draw.gauss(0.0, 1.5)))
            next_s += 0.1 + (draw.uniform(0.0, 0.02) if delayed else 0.0)
        return PowerReading(published[-1][1], None, "gpu")

    def counter_j() -> float:
        nonlocal delayed
        delayed = len(published) > 100
        clock.sleep(draw.uniform(0.003, 0.02) if delayed else CALL_S)
        return board.counter_reading_j(clock.now())

    readings: dict[str, object] = {"power_instant": power_w, "total_energy_j": counter_j}
    (gpu,) = find_gpus(["GPU-1"], FakeNvml(FakeGpu("GPU-1", readings=readings)))
    found = calibrate(gpu, SwitchedLoad(board, clock), clock, draw=random.Random(1), short_stretches=10)
    assert max(b[0] - a[0] for a, b in pairwise(published)) > 0.115
    assert found.update_s == pytest.approx(0.1, rel=0.002)
    assert found.counter_follows_sensor is False


def test_too_few_steps_or_a_steady_reading_tell_nothing_of_the_counter() -> None:
    published = [(0.1 * k, 100.0 if k % 5 < 3 else 400.0) for k in range(40)]
    counted = [(0.01 * i, 0.1 * (i // 10)) for i in range(400)]
    assert counter_follows_sensor(published, counted[:150], 0.1, 0.025) is None
    assert counter_follows_sensor([(t, 100.0) for t, _ in published], counted, 0.1, 0.025) is None
    assert counter_follows_sensor(published, counted, 0.1, 1.0) is None
    assert counter_follows_sensor(published, counted, 0.1, 0.025) is False


def test_an_average_over_a_second_is_recognised() -> None:
    found = _calibrate(_board(Sensor(1.0, 0.1), 4), VirtualClock(10.0))
    assert found.counter_follows_sensor is None
    assert found.averaging_window_s == pytest.approx(1.0, rel=0.1)
    assert found.sampled_share == 1.0


def test_a_slow_load_does_not_pass_for_a_long_average() -> None:
    found = _calibrate(_board(Sensor(0.025, 0.1), 5), VirtualClock(10.0), latency_s=0.015)
    assert found.averaging_window_s == pytest.approx(0.025, abs=0.004)


def test_the_gain_is_not_found_and_the_report_says_so() -> None:
    honest = _calibrate(_board(Sensor(0.025, 0.1), 6), VirtualClock(10.0))
    board = _board(Sensor(0.025, 0.1), 6)
    board.gain = 1.10
    wrong = _calibrate(board, VirtualClock(10.0))
    assert wrong.averaging_window_s == pytest.approx(honest.averaging_window_s, rel=0.01)
    assert "gain cannot be found" in describe(wrong)


def test_a_load_that_does_not_reach_the_board_is_an_error() -> None:
    with pytest.raises(EnergyError, match=r"GPU-1 cannot be calibrated: the load makes no clear steps"):
        _calibrate(_board(Sensor(0.025, 0.1), 7), VirtualClock(10.0), load=False)


def test_readings_that_never_change_are_an_error() -> None:
    with pytest.raises(ResponseError, match="changed only 0 times"):
        find_updates([(0.001 * i, 70.0) for i in range(3000)])


def test_readings_that_change_at_odd_moments_are_an_error() -> None:
    draw = random.Random(8)
    with pytest.raises(ResponseError, match="does not change at regular times"):
        find_updates([(0.001 * i, draw.choice([70.0, 71.0])) for i in range(6000) if draw.random() < 0.5])


def _calibration(tmp_path: Path, edit: Callable[[dict[str, object]], None] | None = None) -> SensorCalibration:
    calibration = SensorCalibration(
        "GPU-1", "550.54", "2026-01-01T00:00:00+00:00", "power_instant", 0.1, 0.025, 1.0, 70.0, 420.0, 0.1, 0.001
    )
    path = save_calibration(calibration, tmp_path)
    if edit is not None:
        content = json.loads(path.read_text(encoding="utf-8"))
        edit(content)
        path.write_text(json.dumps(content), encoding="utf-8")
    return calibration


def test_a_calibration_of_an_earlier_release_does_not_tell_what_the_counter_adds_up(tmp_path: Path) -> None:
    calibration = _calibration(tmp_path, lambda content: content.pop("counter_follows_sensor"))
    assert load_calibration(tmp_path, "GPU-1", "550.54") == calibration
    assert calibration.counter_follows_sensor is None


def test_a_calibration_is_kept_per_board_and_driver(tmp_path: Path) -> None:
    calibration = _calibration(tmp_path)
    assert load_calibration(tmp_path, "GPU-1", "550.54") == calibration
    assert load_calibration(tmp_path, "GPU-1", "570.00") is None
    assert load_calibration(tmp_path, "GPU-2", "550.54") is None


def test_it_describes_the_sensor_to_fusion_and_uncertainty(tmp_path: Path) -> None:
    calibration = _calibration(tmp_path)
    (board,) = find_gpus(["GPU-1"], FakeNvml(FakeGpu("GPU-1")))
    sampling = known_sampling(board, "power_instant", calibration)
    assert (sampling.averaging_window_s, sampling.update_s) == (0.025, 0.1)
    sensor = describe_sensor(calibration, sampling, None)
    assert (sensor.averaging_window_s, sensor.counter_period_s) == (0.025, 0.1)
    assert (
        describe_sensor(calibration, sampling, SensorDescription(0.05, 0.001)).counter_period_s == 0.05
    )  # seen just now
    assert describe_sensor(None, sampling, None).counter_period_s is None
    assert describe_sensor(None, sampling, None).counter_follows_sensor is None
    assert describe_sensor(calibration, sampling, None).counter_follows_sensor is None  # one that did not look
    told = replace(calibration, counter_follows_sensor=False)
    assert describe_sensor(told, sampling, None).counter_follows_sensor is False


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.update(update_s="often"), r"is not a sensor calibration \(update_s: "),
        (lambda content: content.update(update_s=0.0), r"is not a sensor calibration \(update_s: "),
        (lambda content: content.update(averaging_window_s=-1.0), r"\(averaging_window_s: "),
        (lambda content: content.update(averaging_window_s=math.nan), r"\(averaging_window_s: "),
        (lambda content: content.update(counter_tolerance_s=math.inf), r"\(counter_tolerance_s: "),
        (lambda content: content.update(uuid="GPU-9"), "is the calibration of GPU-9"),
    ],
)
def test_a_file_that_is_no_calibration_of_this_board_is_an_error(
    tmp_path: Path, edit: Callable[[dict[str, object]], None], message: str
) -> None:
    _calibration(tmp_path, edit)
    with pytest.raises(EnergyError, match=message):
        load_calibration(tmp_path, "GPU-1", "550.54")


def test_a_place_that_takes_no_calibration_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PersistenceError, match=r"Cannot create .*file/calibration: Not a directory"):
        _calibration(tmp_path / "file" / "calibration")


def test_the_command_tells_what_it_does_and_asks_no_board(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "switched on and off for a minute and a half" in " ".join(capsys.readouterr().out.split())
