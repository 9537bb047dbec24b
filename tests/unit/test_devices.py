from __future__ import annotations

import pytest

from fake_nvml import FakeGpu, FakeNvml
from llenergymeasure.core.gpu.driver import (
    GpuDriverError,
    GpuLostError,
    PermissionDeniedError,
    all_boards,
    find_gpus,
)
from llenergymeasure.core.gpu.visible import cuda_uuids_of_torch, order_is_certain, visible_gpus

A, B, C, D = (FakeGpu(uuid, name="NVIDIA H100") for uuid in ("GPU-a1", "GPU-a2", "GPU-b3", "GPU-c4"))
NVML = FakeNvml(A, B, C, D)


def chosen(visible: str | None, nvml: FakeNvml = NVML) -> list[str]:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return [gpu.uuid for gpu in visible_gpus(environ, nvml)]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [A, B, C, D]),
        ("", []),
        ("0", [A]),
        ("2,0", [C, A]),
        (" 1 , 3 ", [B, D]),
        ("+1", [B]),
        ("1gpu,2x", [B, C]),  # C's strtol stops at the first letter
        ("0,7,1", [A]),
        ("-1,0", []),
        ("1,-1,2", [B]),
        ("NoDevFiles", []),
        ("0,,1", [A]),
        ("1,1", []),
        ("GPU-b3", [C]),
        ("GPU-b", [C]),
        ("GPU-c4,GPU-a1", [D, A]),
        ("GPU-a", []),  # two boards begin like this
        ("GPU-c4,GPU-x,GPU-a1", [D]),
        ("GPU-c4,0", [D]),
        ("0,GPU-c4", [A]),
        ("GPU-b3,GPU-b", []),  # the same board twice
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(visible: str | None, expected: list[FakeGpu]) -> None:
    assert chosen(visible) == [gpu.uuid for gpu in expected]


def test_a_device_carries_both_its_nvml_index_and_its_cuda_index() -> None:
    first, second = visible_gpus({"CUDA_VISIBLE_DEVICES": "3,1"}, NVML)
    assert (first.index, first.cuda_index) == (3, 0)
    assert (second.index, second.cuda_index) == (1, 1)


LOST = GpuLostError("GPU is lost")
DENIED = PermissionDeniedError("no permission")


def beside(reading: str, error: GpuDriverError) -> FakeNvml:
    """Three boards, of which the second fails."""
    return FakeNvml(FakeGpu("GPU-a1"), FakeGpu("GPU-a2", readings={reading: error}), FakeGpu("GPU-b3"))


@pytest.mark.parametrize("reading", ["device_handle", "uuid"])
@pytest.mark.parametrize("error", [LOST, DENIED], ids=["lost", "denied"])
def test_a_board_that_does_not_answer_is_left_out_and_named(
    reading: str, error: GpuDriverError, caplog: pytest.LogCaptureFixture
) -> None:
    """The others keep their NVML index; CUDA counts those that it can see."""
    nvml = beside(reading, error)
    assert [(gpu.uuid, gpu.index) for gpu in all_boards(nvml)] == [("GPU-a1", 0), ("GPU-b3", 2)]
    assert [record.getMessage() for record in caplog.records] == [f"GPU 1 is left out: {error}"]
    assert [(gpu.uuid, gpu.cuda_index) for gpu in visible_gpus({}, nvml)] == [("GPU-a1", 0), ("GPU-b3", 1)]
    assert chosen("1", nvml) == ["GPU-b3"]
    assert chosen("2", nvml) == []
    assert chosen("GPU-a", nvml) == ["GPU-a1"]
    assert [gpu.uuid for gpu in find_gpus(["GPU-b3"], nvml)] == ["GPU-b3"]


def test_where_no_board_answers_the_first_reason_is_raised() -> None:
    boards = [FakeGpu(f"GPU-{error}", readings={"device_handle": error}) for error in (DENIED, LOST)]
    with pytest.raises(PermissionDeniedError, match="no permission"):
        all_boards(FakeNvml(*boards))


def test_a_machine_without_boards_has_none() -> None:
    assert all_boards(FakeNvml()) == ()


def mig_machine() -> FakeNvml:
    sliced = FakeGpu("GPU-s", mig=(FakeGpu("MIG-1"), FakeGpu("MIG-2")))
    return FakeNvml(FakeGpu("GPU-w"), sliced)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("MIG-2", ["MIG-2"]),
        ("MIG-2,MIG-1", ["MIG-2"]),  # a program gets one instance
        ("GPU-s", ["MIG-1"]),
        ("1", ["MIG-1"]),
        ("0", ["GPU-w"]),
        (None, ["MIG-1"]),  # an instance hides the whole boards
        ("MIG-", []),
    ],
)
def test_cuda_shows_one_mig_instance_and_then_no_whole_board(visible: str | None, expected: list[str]) -> None:
    assert chosen(visible, mig_machine()) == expected


def test_a_mig_instance_names_the_board_whose_sensors_speak_for_it() -> None:
    (instance,) = visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-2"}, mig_machine())
    assert instance.is_mig
    assert instance.board_uuid == "GPU-s"
    assert instance.index == 1


def test_the_uuids_of_a_running_cuda_override_the_environment() -> None:
    gpus = visible_gpus({"CUDA_VISIBLE_DEVICES": "0"}, NVML, cuda_uuids=["GPU-c4", "GPU-a2"])
    assert [(gpu.uuid, gpu.cuda_index) for gpu in gpus] == [("GPU-c4", 0), ("GPU-a2", 1)]


def test_torch_uuids_are_written_as_nvml_writes_them() -> None:
    class Properties:
        uuid = "b3"

    class Cuda:
        device_count = staticmethod(lambda: 1)
        get_device_properties = staticmethod(lambda index: Properties)

    class Torch:
        cuda = Cuda

    assert cuda_uuids_of_torch(Torch) == ("GPU-b3",)


def test_the_order_of_unlike_boards_is_certain_only_by_bus_id() -> None:
    unlike = FakeNvml(FakeGpu("GPU-1", name="NVIDIA T4"), FakeGpu("GPU-2", name="NVIDIA H100"))
    assert not order_is_certain({}, unlike)
    assert order_is_certain({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, unlike)
    assert order_is_certain({}, NVML)
