"""The scripted NVML through the real nvidia-ml-py: it plays what the script says, and virtual.py says the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pynvml
import pytest
from tests.nvml.fixtures import ScriptedNvmlFactory
from tests.nvml.scripted import (
    NVML_GPU_IS_LOST,
    NVML_NOT_SUPPORTED,
    NVML_VALUE_UNAVAILABLE,
    Fault,
    MigSlice,
    Process,
    ScriptedGpu,
    fault_of,
    scripted_env,
)
from tests.nvml.virtual import ARCHITECTURES, Counter, CounterEvent, Sensor
from tests.nvml.waveform import Waveform, constant, noise, ramp, square, steps, trace

LONG_S = 1000.0  # sensors and counters that do not move during a test make a reading comparable with the twin's


@pytest.mark.parametrize(
    "waveform",
    [
        constant(300.0),
        steps((0.0, 100.0), (0.003, 400.0)),
        ramp(100.0, 500.0, -200.0, 100.0),
        square(120.0, 500.0, 0.7, duty=0.3, phase_s=0.6),
        noise(300.0, 50.0, 0.01, 2.0, seed=7),
        trace([0.0, 1.0, 2.0, 400.0], [100.0, 300.0, 200.0, 700.0]),
    ],
    ids=["constant", "steps", "ramp", "square", "noise", "trace"],
)
def test_library_and_virtual_twin_read_the_same(scripted_nvml: ScriptedNvmlFactory, waveform: Waveform) -> None:
    sensor = Sensor(window_s=0.7, update_s=LONG_S, phase_s=-123.4, noise_w=5.0)
    slow_average = Sensor(window_s=30.0, update_s=LONG_S, phase_s=-77.0)
    gpu = scripted_nvml.gpu(
        waveform=waveform, instant=sensor, average=slow_average, gain=1.04, seed=42, counter=Counter(LONG_S, -50.3)
    )
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    average, instant = pynvml.nvmlDeviceGetFieldValues(handle, [185, 186])
    assert instant.value.uiVal / 1000 == pytest.approx(gpu.power_reading_w(0.5), abs=0.0011)
    assert average.value.uiVal / 1000 == pytest.approx(gpu.power_reading_w(0.5, "average"), abs=0.0011)
    counter_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert counter_mj / 1000 == pytest.approx(gpu.counter_reading_j(0.5), abs=0.0011)


def test_the_counter_moves_once_per_period_by_the_energy_of_that_period(scripted_nvml: ScriptedNvmlFactory) -> None:
    scripted_nvml.gpu(power_w=300.0, counter_period_s=0.05)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    seen = set()
    while len(seen) < 6:
        seen.add(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    moves_mj = [b - a for a, b in pairwise(sorted(seen))]
    # A busy machine may sleep through a step; then it sees two at once.
    assert all(move == pytest.approx(15_000 * round(move / 15_000), abs=1.0) for move in moves_mj)
    assert min(moves_mj) >= 14_999


def test_the_drivers_own_samples_are_those_of_the_virtual_twin(scripted_nvml: ScriptedNvmlFactory) -> None:
    """Each has one time stamp for ever, is told once, and the last 120 are kept."""
    gpu = ScriptedGpu.of("hopper", waveform=square(100.0, 300.0, 0.5))
    nvml = scripted_nvml.play(gpu)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    before_s = asked_s = -1.0
    while gpu.buffered_w(before_s, asked_s) or asked_s < 0:  # one that is taken meanwhile may be told or not
        before_s = time.monotonic() - nvml.origin_s
        _, first = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
        asked_s = time.monotonic() - nvml.origin_s
    expected = [watts for _, watts in gpu.buffered_w(asked_s - 2.0, asked_s)]
    assert len(first) == 120
    assert [s.sampleValue.uiVal / 1000 for s in first][-90:-5] == pytest.approx(expected[-90:-5], abs=0.001)
    assert {round((b.timeStamp - a.timeStamp) / 1000) for a, b in pairwise(first)} == {20}
    known_us = first[60].timeStamp
    _, more = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_TOTAL_POWER_SAMPLES, known_us)
    assert more[0].timeStamp - known_us == pytest.approx(20_000, abs=1)
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_TOTAL_POWER_SAMPLES, more[-1].timeStamp + 3600 * 10**6)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, 0)


def test_truth_between_two_monotonic_times_is_known(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpu = scripted_nvml.gpu(waveform=square(100.0, 300.0, 0.5))
    start = time.monotonic()
    assert gpu.energy_between_j(start, start + 5.0) == pytest.approx(1000.0)


def test_power_changed_while_running_shows_in_sensor_and_counter(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpu = scripted_nvml.gpu(power_w=100.0, instant=Sensor(0.01, 0.01), counter_period_s=0.01)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    began_s = time.monotonic()
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    gpu.set_power_now(500.0)
    set_s = time.monotonic()
    time.sleep(0.1)
    assert pynvml.nvmlDeviceGetFieldValues(handle, [186])[0].value.uiVal == 500_000
    asked_s = time.monotonic()
    moved_j = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1000
    unseen_j = 0.01 * 500.0 + 0.001
    assert gpu.energy_between_j(set_s, asked_s) - unseen_j <= moved_j
    assert moved_j <= gpu.energy_between_j(began_s, time.monotonic()) + unseen_j


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_an_architecture_has_the_fields_and_counter_it_is_known_for(
    scripted_nvml: ScriptedNvmlFactory, architecture: str
) -> None:
    kind = ARCHITECTURES[architecture]
    gpu = ScriptedGpu.of(architecture, waveform=constant(150.0))
    scripted_nvml.play(gpu)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    assert pynvml.nvmlDeviceGetArchitecture(handle) == kind.nvml_id
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 150_000
    instant = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
    assert (instant.nvmlReturn == pynvml.NVML_SUCCESS) is kind.instant_field
    if kind.counter:
        assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) > 0
    else:
        with pytest.raises(pynvml.NVMLError_NotSupported):
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)


def test_field_values_carry_wall_clock_microseconds_and_their_scope(scripted_nvml: ScriptedNvmlFactory) -> None:
    scripted_nvml.gpu(power_w=200.0, module_extra_w=90.0)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    before_s = time.time()
    gpu, module, memory = pynvml.nvmlDeviceGetFieldValues(handle, [(186, 0), (186, 1), (186, 2)])
    assert before_s - 0.001 <= gpu.timestamp / 1e6 <= time.time() + 0.001
    assert (gpu.value.uiVal, module.value.uiVal) == (200_000, 290_000)
    assert memory.nvmlReturn == NVML_NOT_SUPPORTED


def test_a_field_can_be_stamped_with_its_update_instead_of_the_query(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpu = scripted_nvml.gpu(power_w=200.0, field_timestamp="update", instant=Sensor(0.1, LONG_S, phase_s=-5.0))
    pynvml.nvmlInit()
    stamp_s = pynvml.nvmlDeviceGetFieldValues(pynvml.nvmlDeviceGetHandleByIndex(0), [186])[0].timestamp / 1e6
    origin_wall_s = time.time() - (time.monotonic() - gpu._bound().origin_s)
    assert stamp_s - origin_wall_s == pytest.approx(-5.0, abs=1.0)  # a query's would be after the origin


def test_counter_events_reset_freeze_and_jump(scripted_nvml: ScriptedNvmlFactory) -> None:
    def reading(*events: CounterEvent) -> float:
        scripted_nvml.gpu(power_w=100.0, counter=Counter(LONG_S, -100.0, base_j=400_000.0), counter_events=events)
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1000

    assert reading() == 390_000.0
    assert reading(CounterEvent("reset", -1.0)) == 0.0
    assert reading(CounterEvent("jump", -1.0, amount_j=-3.0)) == 389_997.0
    assert reading(CounterEvent("freeze", -2000.0)) == 190_000.0
    assert reading(CounterEvent("freeze", -2000.0, until_s=-1.0)) == 390_000.0


def test_faults_are_errors_slow_calls_and_impossible_values(scripted_nvml: ScriptedNvmlFactory) -> None:
    scripted_nvml.gpu(
        power_w=100.0,
        faults=[
            fault_of("nvmlDeviceGetTotalEnergyConsumption", NVML_GPU_IS_LOST),
            Fault("field:186", "value", NVML_VALUE_UNAVAILABLE),
            Fault("nvmlDeviceGetTemperature", "sleep", 0.05),
            Fault("nvmlDeviceGetPowerUsage", "error", 999, after_calls=2),
            Fault("nvmlDeviceGetName", "error", 4, from_s=3600.0),
        ],
    )
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert pynvml.nvmlDeviceGetFieldValues(handle, [186])[0].value.uiVal == 0xFFFFFFFF
    before = time.monotonic()
    assert pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU) == 45
    assert time.monotonic() - before >= 0.05
    assert [pynvml.nvmlDeviceGetPowerUsage(handle) for _ in range(2)] == [100_000, 100_000]
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetPowerUsage(handle)
    assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA Scripted GPU"


def test_mig_slices_have_handles_and_a_parent_but_no_power(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpu = scripted_nvml.gpu(mig_slices=[MigSlice("MIG-a", 1), MigSlice("MIG-b", 2)])
    pynvml.nvmlInit()
    board = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetMigMode(board) == [1, 1]
    by_index = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, 1)
    assert pynvml.nvmlDeviceGetUUID(by_index) == "MIG-b"
    by_uuid = pynvml.nvmlDeviceGetHandleByUUID("MIG-a")
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(by_uuid)
    assert pynvml.nvmlDeviceGetUUID(parent) == gpu.uuid
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetPowerUsage(by_uuid)


def test_identity_telemetry_memory_and_processes(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpus = [
        ScriptedGpu(temperature_c=[(0.0, 40.0), (3600.0, 90.0)], throttle_reasons=0x44, processes=[Process(4242)]),
        ScriptedGpu(name="NVIDIA Other", memory_used_mb=2000.0, persistence_mode=False),
    ]
    scripted_nvml.play(*gpus)
    pynvml.nvmlInit()
    first, second = (pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount()))
    assert pynvml.nvmlDeviceGetName(second) == "NVIDIA Other"
    assert pynvml.nvmlDeviceGetTemperatureV(first, 0) == 40
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(first) == 0x44
    assert pynvml.nvmlDeviceGetClockInfo(first, pynvml.NVML_CLOCK_MEM) == 2619
    assert pynvml.nvmlDeviceGetUtilizationRates(first).gpu == 50
    assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(first)] == [4242]
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(second) == []
    assert pynvml.nvmlDeviceGetMemoryInfo(second).used == 2_000_000_000
    assert pynvml.nvmlDeviceGetMemoryInfo(second, version=pynvml.nvmlMemory_v2).free == 78_000_000_000
    assert pynvml.nvmlDeviceGetPersistenceMode(second) == 0
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(first) == [200_000, 700_000]
    assert pynvml.nvmlDeviceGetCudaComputeCapability(first) == (9, 0)
    assert pynvml.nvmlSystemGetCudaDriverVersion() == 12040
    bus_id = pynvml.nvmlDeviceGetPciInfo(second).busId
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByPciBusId(bus_id.encode())) == gpus[1].uuid


def test_calls_are_logged_with_their_time_and_device(scripted_nvml: ScriptedNvmlFactory) -> None:
    gpus = [ScriptedGpu(), ScriptedGpu()]
    scripted_nvml.play(*gpus)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    between = time.monotonic()
    pynvml.nvmlDeviceGetFieldValues(handle, [83])
    after = time.monotonic()
    assert gpus[1].counter_reads_between(0.0, between) == 1
    assert gpus[1].counter_reads_between(between, after) == 1
    assert gpus[0].counter_reads_between(0.0, after) == 0


def test_without_a_script_there_is_no_driver(scripted_nvml: ScriptedNvmlFactory) -> None:
    scripted_nvml.gpu()
    pynvml.nvmlInit()
    scripted_nvml.close()
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()


def test_a_new_process_finds_the_library_through_its_environment(tmp_path: Path) -> None:
    gpu = ScriptedGpu(name="NVIDIA Elsewhere")
    code = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetName(n.nvmlDeviceGetHandleByIndex(0)))"
    env = {**os.environ, **scripted_env([gpu], tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "NVIDIA Elsewhere"
    assert [c.function for c in gpu.calls()] == ["nvmlDeviceGetName"]
