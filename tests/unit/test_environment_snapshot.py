"""The snapshot as a whole: GPUs in the program's order, parts that fail alone, and the background thread."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.nvml.scripted import NVML_UNKNOWN, Fault, MigSlice, ScriptedGpu

from llenergymeasure.constants import VERSION
from llenergymeasure.core.gpu.driver import DriverMissingError, GpuDriver, GpuLostError
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.host.environment import (
    collect_environment,
    environment_in_background,
)
from llenergymeasure.core.host.host import Host

if TYPE_CHECKING:
    from tests.nvml.fixtures import ScriptedNvmlFactory


def no_driver() -> GpuDriver:
    raise DriverMissingError("no driver")


def no_cuda_toolkit(root: Path) -> dict[str, str]:
    return {"PATH": "", "CUDA_HOME": str(root)}


def sources(root: Path, **more: object) -> Host:
    defaults: dict[str, object] = {
        "environ": no_cuda_toolkit(root),
        "open_driver": no_driver,
        "root": root,
        "torch_dir": lambda: None,
        "packages": lambda: ["pydantic==2.14.3"],
    }
    return Host(**{**defaults, **more})  # type: ignore[arg-type]


def test_a_machine_without_gpus_has_a_snapshot_without_hardware(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = collect_environment(sources(tmp_path))

    assert snapshot.tool_version == VERSION
    assert snapshot.gpu_names == []
    assert snapshot.hardware is None
    assert snapshot.cuda_driver_version is None
    assert snapshot.pip_freeze == ["pydantic==2.14.3"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_gpus_are_those_the_program_sees_in_its_order(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    scripted_nvml.play(
        ScriptedGpu.of("hopper", uuid="GPU-aaaa", name="NVIDIA H100", memory_total_mb=85_520.0),
        ScriptedGpu.of("a100", uuid="GPU-bbbb", name="NVIDIA A100", persistence_mode=False, power_limit_w=250.0),
    )

    snapshot = collect_environment(
        sources(tmp_path, open_driver=open_nvml, environ={"CUDA_VISIBLE_DEVICES": "1,0", **no_cuda_toolkit(tmp_path)})
    )

    assert snapshot.gpu_uuids == ["GPU-bbbb", "GPU-aaaa"]
    assert snapshot.gpu_names == ["NVIDIA A100", "NVIDIA H100"]
    assert snapshot.gpu_persistence_mode == [False, True]
    assert snapshot.gpu_power_limit_w == [250.0, 700.0]
    assert snapshot.gpu_max_sm_clock_mhz == [1980.0, 1980.0]
    assert snapshot.cuda_driver_version == "550.54.15"


def test_the_first_gpu_is_described_in_full(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    scripted_nvml.play(
        ScriptedGpu.of("a100", name="NVIDIA A100 80GB", temperature_c=42.0, power_limit_w=300.0, memory_total_mb=8e4)
    )
    (tmp_path / ".dockerenv").touch()

    hardware = collect_environment(sources(tmp_path, open_driver=open_nvml)).hardware

    assert hardware is not None
    assert hardware.gpu.compute_capability == "8.0"
    assert hardware.gpu.mig_enabled is False
    assert hardware.gpu.pcie_gen is None  # this driver does not tell
    assert hardware.thermal.temperature_c == 42.0
    assert (hardware.thermal.power_limit_w, hardware.thermal.default_power_limit_w) == (300.0, 700.0)
    assert hardware.thermal.fan_speed_pct is None
    assert hardware.summary_line == "A100 80GB | Driver 550.54.15 | 42C | container"


def test_a_mig_instance_has_its_own_memory_and_its_boards_limits(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path
) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper", mig_slices=[MigSlice("MIG-1111", memory_mb=10_000.0)]))

    snapshot = collect_environment(sources(tmp_path, open_driver=open_nvml))

    assert snapshot.gpu_uuids == ["MIG-1111"]
    assert snapshot.gpu_vram_mb == [pytest.approx(10_000.0, rel=0.05)]
    assert snapshot.gpu_power_limit_w == [700.0]


def test_a_reading_that_fails_is_null_and_logged(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault("nvmlDeviceGetPersistenceMode", "error", NVML_UNKNOWN)
    scripted_nvml.play(ScriptedGpu.of("hopper", faults=[fault]))

    snapshot = collect_environment(sources(tmp_path, open_driver=open_nvml))

    assert snapshot.gpu_persistence_mode == [None]
    assert snapshot.gpu_power_limit_w == [700.0]
    assert "persistence mode" in caplog.text


def test_a_part_that_fails_leaves_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def lost() -> GpuDriver:
        raise GpuLostError("GPU 0 is lost")

    def broken() -> list[str]:
        raise RuntimeError("the package database is locked")

    snapshot = collect_environment(sources(tmp_path, open_driver=lost, packages=broken))

    assert snapshot.gpu_names == []
    assert snapshot.pip_freeze == []
    assert snapshot.cpu is not None
    assert "GPU 0 is lost" in caplog.text
    assert "the package database is locked" in caplog.text


def test_the_distribution_is_read_from_os_release(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n')

    assert collect_environment(sources(tmp_path)).os_version == "Ubuntu 24.04.3 LTS"


def test_a_snapshot_holds_no_value_of_the_environment(tmp_path: Path) -> None:
    secrets = {"HF_TOKEN": "hf_s3cret", "HOME": "/home/alice", "USER": "alice", "CUDA_HOME": "/home/alice/cuda"}

    snapshot = collect_environment(sources(tmp_path, environ={"PATH": "", **secrets}))

    assert "s3cret" not in snapshot.model_dump_json()
    assert "alice" not in snapshot.model_dump_json()


def test_the_thread_is_done_when_the_block_is_left(tmp_path: Path) -> None:
    before = threading.active_count()

    with environment_in_background(sources(tmp_path)):
        pass

    assert threading.active_count() <= before  # one of another test may have ended since


def test_a_block_that_is_interrupted_does_not_wait_for_a_hanging_driver(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release, answered = threading.Event(), threading.Event()

    def hang() -> GpuDriver:
        release.wait(30)
        answered.set()
        raise DriverMissingError("no driver")

    with pytest.raises(KeyboardInterrupt), environment_in_background(sources(tmp_path, open_driver=hang)):
        raise KeyboardInterrupt
    assert not answered.is_set()
    release.set()
    assert caplog.text == ""


def test_the_snapshot_is_taken_while_the_block_works(tmp_path: Path) -> None:
    go_on = threading.Event()

    def packages() -> list[str]:
        go_on.wait(30)
        return ["late==1.0"]

    with environment_in_background(sources(tmp_path, packages=packages)) as environment:
        go_on.set()
        snapshot = environment()

    assert snapshot.pip_freeze == ["late==1.0"]


def test_a_hanging_driver_costs_the_description_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def hang() -> GpuDriver:
        release.wait(30)
        raise DriverMissingError("no driver")

    with environment_in_background(sources(tmp_path, open_driver=hang), timeout_s=0.01) as environment:
        snapshot = environment()
    release.set()

    assert snapshot.tool_version == VERSION
    assert snapshot.pip_freeze == []
    assert "not complete after 0.01 s" in caplog.text
