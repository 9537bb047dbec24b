"""From `CUDA_VISIBLE_DEVICES` to joules through the real binding: exactly the GPUs that a program would use count.

Four boards draw 100, 200, 400 and 800 W, so that no figure can be mistaken for another's.
"""

from __future__ import annotations

import math
import os
import time

import pytest
from tests.nvml.fixtures import ScriptedNvmlFactory
from tests.nvml.scripted import (
    NVML_GPU_IS_LOST,
    NVML_NO_PERMISSION,
    MigSlice,
    ScriptedGpu,
    ScriptedNvml,
    fault_of,
)
from tests.nvml.virtual import Counter
from tests.nvml.waveform import constant

from energy_fakes import farthest_j, nvml_meter
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import order_is_certain, visible_gpus
from llenergymeasure.domain.energy import comparative_half_width
from llenergymeasure.domain.warnings import WarningCode

A, B, C, D = (f"GPU-{letter * 8}-5c21-4e60-9d3a-0123456789ab" for letter in "abcd")
WATTS = {A: 100.0, B: 200.0, C: 400.0, D: 800.0}
FIRST_SLICE, SECOND_SLICE = "MIG-11111111-5c21-4e60-9d3a-000000000001", "MIG-22222222-5c21-4e60-9d3a-000000000002"


def machine(
    factory: ScriptedNvmlFactory, *, sliced: str | None = None, broken: str | None = None, code: int = NVML_GPU_IS_LOST
) -> ScriptedNvml:
    """Four like boards; one of them in MIG mode, or out of reach, if so wished."""
    return factory.play(
        *(
            ScriptedGpu.of(
                "hopper",
                uuid=uuid,
                name="NVIDIA H100",
                waveform=constant(watts),
                counter=Counter(0.1, phase_s=watts / 10_000.0),
                mig_slices=(MigSlice(FIRST_SLICE), MigSlice(SECOND_SLICE, 2)) if uuid == sliced else (),
                faults=(fault_of("nvmlDeviceGetHandleByIndex_v2", code),) if uuid == broken else (),
            )
            for uuid, watts in WATTS.items()
        )
    )


def measured_here(nvml: ScriptedNvml) -> tuple[EnergyMeasurement, list[str]]:
    """A window on the GPUs that a program started here would see, and the boards whose counters were read for it."""
    gpus = visible_gpus(os.environ, open_nvml())
    before = {gpu.uuid: counter_reads(gpu) for gpu in nvml.gpus}
    meter = nvml_meter([gpu.uuid for gpu in gpus], open_nvml(), SystemClock(), MeterOptions(poll_interval_ms=50))
    handle = meter.start_tracking()
    time.sleep(0.4)
    energy = meter.stop_tracking(handle)
    if energy.telemetry is not None:
        energy.telemetry.close()
    return energy, [gpu.uuid for gpu in nvml.gpus if counter_reads(gpu) > before[gpu.uuid]]


def counter_reads(gpu: ScriptedGpu) -> int:
    return gpu.counter_reads_between(-math.inf, math.inf)


@pytest.mark.parametrize(
    ("visible", "used"),
    [
        pytest.param(None, [A, B, C, D], id="unset"),
        pytest.param("0", [A], id="index"),
        pytest.param("2", [C], id="another index"),
        pytest.param("3,1", [D, B], id="indices reordered"),
        pytest.param(C, [C], id="uuid"),
        pytest.param(f"{D},{A}", [D, A], id="uuids reordered"),
        pytest.param(f"{B[:7]},{D[:9]}", [B, D], id="beginnings of uuids"),
        pytest.param(f"1,7,{A}", [B], id="ends at what names nothing"),
    ],
)
def test_only_visible_gpus_are_counted_in_cudas_order(
    visible: str | None, used: list[str], scripted_nvml: ScriptedNvmlFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    energy, read = measured_here(machine(scripted_nvml))
    assert list(energy.per_gpu_j) == used
    assert sorted(read) == sorted(used)
    for uuid in used:
        stated_j = farthest_j(comparative_half_width(energy.per_gpu_components[uuid]))
        assert energy.per_gpu_j[uuid] == pytest.approx(WATTS[uuid] * energy.duration_sec, abs=stated_j)
    assert energy.total_j == pytest.approx(sum(energy.per_gpu_j[uuid] or 0.0 for uuid in used))


@pytest.mark.parametrize("code", [NVML_GPU_IS_LOST, NVML_NO_PERMISSION], ids=["lost", "denied"])
@pytest.mark.parametrize(("visible", "used"), [(None, [A, C, D]), ("1", [C]), (D, [D]), ("2,0", [D, A])])
def test_the_healthy_boards_are_counted_beside_one_that_is_not(
    code: int,
    visible: str | None,
    used: list[str],
    scripted_nvml: ScriptedNvmlFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """CUDA's index counts the boards that it can see."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    energy, read = measured_here(machine(scripted_nvml, broken=B, code=code))
    assert (list(energy.per_gpu_j), sorted(read)) == (used, sorted(used))
    true_j = sum(WATTS[uuid] for uuid in used) * energy.duration_sec
    assert energy.total_j == pytest.approx(true_j, abs=farthest_j(comparative_half_width(energy.components)))
    assert "GPU 1 is left out" in caplog.text


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", f"{A},{A}"])
def test_where_cuda_shows_nothing_nothing_is_counted(
    visible: str, scripted_nvml: ScriptedNvmlFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine(scripted_nvml)
    assert visible_gpus(os.environ, open_nvml()) == ()


@pytest.mark.parametrize(
    ("visible", "instance"),
    [
        pytest.param(FIRST_SLICE, FIRST_SLICE, id="uuid of a slice"),
        pytest.param(f"{SECOND_SLICE},{FIRST_SLICE}", SECOND_SLICE, id="the first of two"),
        pytest.param("2", FIRST_SLICE, id="index of a board with slices"),
        pytest.param(C, FIRST_SLICE, id="uuid of a board with slices"),
        pytest.param(None, FIRST_SLICE, id="unset: a slice hides the whole boards"),
    ],
)
def test_of_a_mig_slice_the_whole_board_is_counted_and_said_to_be(
    visible: str | None, instance: str, scripted_nvml: ScriptedNvmlFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    energy, read = measured_here(machine(scripted_nvml, sliced=C))
    assert (list(energy.per_gpu_j), read, energy.scope) == ([instance], [C], "gpu_board")
    assert energy.total_j == pytest.approx(
        WATTS[C] * energy.duration_sec, abs=farthest_j(comparative_half_width(energy.components))
    )
    assert WarningCode.MIG_PARENT_ENERGY in {note.code for note in energy.notes}


def test_a_whole_board_beside_a_sliced_one_is_a_whole_board(
    scripted_nvml: ScriptedNvmlFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    energy, read = measured_here(machine(scripted_nvml, sliced=C))
    assert (sorted(read), energy.scope) == ([A, B], "gpu")
    true_j = (WATTS[A] + WATTS[B]) * energy.duration_sec
    assert energy.total_j == pytest.approx(true_j, abs=farthest_j(comparative_half_width(energy.components)))


def test_of_unlike_boards_only_the_bus_order_is_certain(
    scripted_nvml: ScriptedNvmlFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under CUDA's own ranking nobody but CUDA knows which board is 0; the engine is asked then."""
    scripted_nvml.play(ScriptedGpu.of("turing", name="NVIDIA T4"), ScriptedGpu.of("hopper", name="NVIDIA H100"))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert not order_is_certain(os.environ, open_nvml())
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert order_is_certain(os.environ, open_nvml())
