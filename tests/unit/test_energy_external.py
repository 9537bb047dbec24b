"""Joules from other packages, believed only as far as the power samples bear them out."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from energy_fakes import PowercapTree, nvml_meter
from fake_nvml import FakeGpu, FakeNvml
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.boards import board_warnings
from llenergymeasure.core.energy.meter import Meter
from llenergymeasure.core.energy.packages import (
    JOULES_PER_KWH,
    CodeCarbonEstimate,
    CodeCarbonStrategy,
    PackageReading,
    PackageStrategy,
    require_counters,
)
from llenergymeasure.core.energy.select import select_energy_backend
from llenergymeasure.core.energy.strategies import PERIOD_TIMEOUT_S
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.driver import Gpu, GpuDriverError, GpuLostError, find_gpus
from llenergymeasure.core.host.host import Host
from llenergymeasure.domain.energy import comparative_half_width
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.exceptions import EnergyError

CLOCK = SystemClock()
POWER_W = 100.0


class ScriptedPackage(PackageStrategy):
    """A package that answers `closing(seconds since it was opened)`."""

    name = "package"

    def __init__(
        self,
        gpus: Sequence[Gpu],
        options: MeterOptions,
        closing: Callable[[float], PackageReading],
        opening: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(gpus, CLOCK, options)
        self._closing = closing
        self._opening = opening
        self._opened_s = 0.0

    def begin(self, key: str) -> None:
        self._opening()
        self._opened_s = CLOCK.now()

    def end(self, key: str) -> PackageReading:
        return self._closing(CLOCK.now() - self._opened_s)


def backend(closing: Callable[[float], PackageReading], **more: Callable[[], None]) -> Meter:
    gpus = find_gpus(["GPU-0"], FakeNvml(FakeGpu("GPU-0", readings={"total_energy_j": 1.0})))
    options = MeterOptions(poll_interval_ms=20)
    return Meter(ScriptedPackage(gpus, options, closing, **more), CLOCK, options)


def window(closing: Callable[[float], PackageReading], seconds: float = 0.3) -> EnergyMeasurement:
    meter = backend(closing)
    handle = meter.start_tracking()
    CLOCK.sleep(seconds)
    return meter.stop_tracking(handle)


def joules(factor: float) -> Callable[[float], PackageReading]:
    return lambda seconds: PackageReading({0: factor * POWER_W * seconds})


def failing(seconds: float) -> PackageReading:
    raise EnergyError("the package is confused")


def test_joules_that_the_samples_bear_out_are_the_answer() -> None:
    energy = window(joules(1.0))
    assert (energy.method, energy.scope, energy.meter) == ("hardware_counter", "gpu", "package")
    stated_j = comparative_half_width(energy.components)  # the package's window is a little longer
    assert energy.total_j == pytest.approx(POWER_W * energy.duration_sec, abs=stated_j)
    assert energy.audit is not None
    assert {note.code for note in energy.notes} <= {WarningCode.SAMPLER_DEADLINES_MISSED}  # of a busy machine


@pytest.mark.parametrize(
    "closing",
    [joules(0.0), joules(-1.0), joules(1000.0), failing, lambda seconds: PackageReading({})],
    ids=["zero", "backwards", "jumped", "failed", "nothing"],
)
def test_joules_that_cannot_be_are_replaced_by_the_integral(closing: Callable[[float], PackageReading]) -> None:
    energy = window(closing)
    assert energy.method == "power_integration"
    assert energy.total_j == pytest.approx(POWER_W * energy.duration_sec, rel=0.01)
    assert "integral of power samples" in energy.notes[0].message


def test_joules_that_contradict_the_samples_leave_no_figure() -> None:
    energy = window(joules(3.0), seconds=1.0)
    assert energy.total_j is None
    assert energy.notes[0].code is WarningCode.ENERGY_METHODS_DISAGREE


def test_host_energy_of_the_package_is_carried_along() -> None:
    energy = window(lambda seconds: PackageReading({0: POWER_W * seconds}, cpu_j=7.0, dram_j=2.0))
    assert (energy.cpu_j, energy.dram_j) == (7.0, 2.0)


def test_a_package_without_joules_is_not_available_and_says_why() -> None:
    meter = backend(joules(0.0))
    assert not meter.is_available()
    with pytest.raises(EnergyError, match="stood still"):
        meter.prove()


def test_the_proof_is_what_was_read() -> None:
    assert re.fullmatch(r"GPU 0 took \d+\.\d J in \d\.\d\d s", backend(joules(1.0)).prove())


def test_codecarbon_without_the_program_it_finds_gpus_with_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("codecarbon")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnergyError, match="by running nvidia-smi, which is not on PATH"):
        select_energy_backend("codecarbon", ["GPU-0"], host=Host(open_driver=lambda: FakeNvml(FakeGpu("GPU-0"))))


def test_an_estimate_that_is_lost_at_the_end_costs_its_figure_and_not_the_run() -> None:
    pytest.importorskip("codecarbon")
    estimate = CodeCarbonEstimate()
    energy = estimate.measurement(0.0, 1.0, estimate.after("a task that it does not know"), None)
    assert energy.total_j is None
    assert [str(note) for note in energy.notes] == [
        "energy_unavailable: CodeCarbon lost its measurement task; repeat the run"
    ]


class GuessingTracker:
    """CodeCarbon's, which tells joules of 100 W whatever became of the counter."""

    def __init__(self, **settings: object) -> None:
        self._opened_s = 0.0

    def start_task(self, key: str) -> None:
        self._opened_s = CLOCK.now()

    def stop_task(self, key: str) -> SimpleNamespace:
        gpu_kwh = POWER_W * (CLOCK.now() - self._opened_s) / JOULES_PER_KWH
        return SimpleNamespace(gpu_energy=gpu_kwh, cpu_energy=1e-6, ram_energy=1e-6)


@pytest.mark.parametrize(
    ("at_the_end", "method"),
    [
        pytest.param(1030.0, "hardware_counter", id="went on"),
        pytest.param(GpuLostError("GPU is lost"), "power_integration", id="failed"),
        pytest.param(5.0, "power_integration", id="was reset"),
    ],
)
def test_what_codecarbon_puts_in_the_place_of_a_counter_does_not_pass_for_one(
    at_the_end: object, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = ModuleType("codecarbon")
    stand_in.__spec__ = ModuleSpec("codecarbon", None)
    stand_in.OfflineEmissionsTracker = GuessingTracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "codecarbon", stand_in)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    total: list[object] = [1000.0]
    board = FakeGpu("GPU-0", readings={"total_energy_j": lambda: total[0]})
    options = MeterOptions(poll_interval_ms=20)
    meter = Meter(CodeCarbonStrategy(find_gpus(["GPU-0"], FakeNvml(board)), CLOCK, options), CLOCK, options)
    handle = meter.start_tracking()
    CLOCK.sleep(0.3)
    total[0] = at_the_end
    energy = meter.stop_tracking(handle)
    assert energy.method == method
    assert energy.total_j == pytest.approx(POWER_W * energy.duration_sec, rel=0.2)  # of real time, on a busy machine
    told = [str(note) for note in energy.notes if "integral of power samples" in note.message]
    assert len(told) == (method == "power_integration")
    assert all("CodeCarbon guessed instead" in text for text in told)


def test_boards_without_a_counter_are_refused() -> None:
    boards = find_gpus(["GPU-0"], FakeNvml(FakeGpu("GPU-0")))
    with pytest.raises(EnergyError, match=r"GPU 0 has no energy counter for zeus to read; use energy\.backend: nvml"):
        require_counters(boards, "zeus")


def test_a_package_is_as_uncertain_as_the_counter_that_it_reads_is_slow() -> None:
    """This one stands still all the time that it is watched."""
    meter = backend(joules(1.0))
    meter.prove()
    handle = meter.start_tracking()
    CLOCK.sleep(0.1)
    energy = meter.stop_tracking(handle)
    assert energy.gpu_window is not None
    (board,) = energy.gpu_window.boards
    still_s = board.sensor.counter_still_s
    assert still_s > 0.5 * PERIOD_TIMEOUT_S
    (part,) = (part for part in energy.components if part.kind == "counter_resolution")
    assert part.half_width_j > 1.9 * still_s * POWER_W * 1.96 * math.sqrt(2.0 / 12.0)


def sampler_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "llem-power-sampler"]


def interrupt(*_: object) -> PackageReading:
    raise KeyboardInterrupt


def test_an_interrupt_while_a_window_opens_leaves_no_thread() -> None:
    with pytest.raises(KeyboardInterrupt):
        backend(joules(1.0), opening=interrupt).start_tracking()  # type: ignore[arg-type]
    assert not sampler_threads()


def test_an_interrupt_while_a_window_closes_leaves_no_thread() -> None:
    meter = backend(interrupt)
    handle = meter.start_tracking()
    with pytest.raises(KeyboardInterrupt):
        meter.stop_tracking(handle)
    assert not sampler_threads()


def test_host_counters_that_fail_as_a_window_opens_cost_their_own_figures_and_leave_no_thread(tmp_path: Path) -> None:
    tree, closed = PowercapTree(tmp_path), list[float]()
    zone = tree.zone("intel-rapl:0", "package-0")

    def closing(seconds: float) -> PackageReading:
        closed.append(seconds)
        return PackageReading()

    gpus = find_gpus(["GPU-0"], FakeNvml(FakeGpu("GPU-0", readings={"total_energy_j": 1.0})))
    options = MeterOptions(poll_interval_ms=20)
    package = ScriptedPackage(gpus, options, closing, opening=(zone / "energy_uj").unlink)
    meter = Meter(package, CLOCK, options, tree.root)
    energy = meter.stop_tracking(meter.start_tracking())
    energy.close()
    assert energy.cpu_j is None
    assert any("energy_uj cannot be read" in note.message for note in energy.notes)
    assert len(closed) == 1
    assert not sampler_threads()


@pytest.mark.parametrize("interrupted", ["opening", "closing"])
def test_an_interrupt_during_a_burst_of_nvml_reads_leaves_no_thread(interrupted: str) -> None:
    state = {"armed": False}

    def read() -> float:
        if state["armed"]:
            raise KeyboardInterrupt
        return 1.0

    nvml = FakeNvml(FakeGpu("GPU-0", readings={"total_energy_j": read}))
    meter = nvml_meter(["GPU-0"], nvml, CLOCK, MeterOptions(poll_interval_ms=20))
    if interrupted == "opening":
        state["armed"] = True
        with pytest.raises(KeyboardInterrupt):
            meter.start_tracking()
    else:
        handle = meter.start_tracking()
        state["armed"] = True
        with pytest.raises(KeyboardInterrupt):
            meter.stop_tracking(handle)
    assert not sampler_threads()


def test_a_handle_of_another_meter_is_refused() -> None:
    nvml = FakeNvml(FakeGpu("GPU-0"))
    other = nvml_meter(["GPU-0"], nvml, CLOCK, MeterOptions(poll_interval_ms=20))
    handle = other.start_tracking()
    with pytest.raises(EnergyError, match="not opened by the package meter"):
        backend(joules(1.0)).stop_tracking(handle)
    other.stop_tracking(handle)


def test_a_meter_takes_the_experiments_processes_for_its_own_and_no_others() -> None:
    command = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as busy,
        subprocess.Popen(command, stdin=subprocess.PIPE) as lone,
    ):
        nvml = FakeNvml(FakeGpu("GPU-0", readings={"compute_pids": (busy.pid,)}))
        told = {}
        for family_pid in (None, os.getpid(), lone.pid):
            meter = nvml_meter(["GPU-0"], nvml, CLOCK, MeterOptions(poll_interval_ms=20, family_pid=family_pid))
            energy = meter.stop_tracking(meter.start_tracking())
            told[family_pid] = WarningCode.FOREIGN_GPU_PROCESS in {note.code for note in energy.notes}
        for process in (busy, lone):
            assert process.stdin is not None
            process.stdin.close()
    assert told == {None: False, os.getpid(): False, lone.pid: True}


def codes(**readings: object) -> list[WarningCode]:
    nvml = FakeNvml(FakeGpu("GPU-0", readings=readings))
    return [warning.code for warning in board_warnings(find_gpus(["GPU-0"], nvml))]


def test_a_board_in_good_order_raises_no_doubt() -> None:
    assert codes() == []
    assert codes(persistence_mode=GpuDriverError("unknown"), compute_pids=GpuDriverError("unknown")) == []


def test_what_spoils_a_measurement_is_told() -> None:
    assert codes(persistence_mode=False) == [WarningCode.GPU_PERSISTENCE_MODE_OFF]
    assert codes(compute_pids=(1,)) == [WarningCode.FOREIGN_GPU_PROCESS]  # init is nobody's inference engine


def test_a_mig_instance_is_told_to_have_the_whole_boards_joules() -> None:
    nvml = FakeNvml(FakeGpu("GPU-s", mig=(FakeGpu("MIG-1"),)))
    meter = nvml_meter(["MIG-1"], nvml, CLOCK, MeterOptions(poll_interval_ms=20))
    handle = meter.start_tracking()
    CLOCK.sleep(0.1)
    energy = meter.stop_tracking(handle)
    assert energy.scope == "gpu_board"
    assert list(energy.per_gpu_j) == ["MIG-1"]
    assert WarningCode.MIG_PARENT_ENERGY in {note.code for note in energy.notes}
