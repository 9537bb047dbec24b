"""What a run met and what its figures cover: machine, software and prompts, devices, windows and processes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, TypeVar

from pydantic import Field

from llenergymeasure.domain.base import (
    Column,
    EnergyScope,
    Merge,
    Record,
    Same,
    distinct,
    empty,
    merge_records,
    optional,
    united,
)

T = TypeVar("T")


class GPUEnvironment(Record):
    """One GPU."""

    name: str = Field(description="Marketing name.")
    vram_total_mb: float | None = Field(
        ge=0,
        description="Total memory, in MB (10^6 B); null: not told (boards that share the host's memory).",
    )
    compute_capability: str | None = optional("CUDA compute capability, e.g. `8.0`.")
    pcie_gen: int | None = optional("PCIe generation of the current link.")
    mig_enabled: bool | None = optional("Whether the board is cut into MIG slices.")


class CUDAEnvironment(Record):
    """CUDA and driver."""

    version: str | None = optional("CUDA version, e.g. `12.4`.")
    driver_version: str | None = optional("NVIDIA driver version.")
    cudnn_version: str | None = optional("cuDNN version.")


class ThermalEnvironment(Record):
    """Temperature and power limits when the run began."""

    temperature_c: float | None = optional("GPU temperature, in degrees Celsius.")
    power_limit_w: float | None = optional("Enforced power limit, in watts.")
    default_power_limit_w: float | None = optional("Factory power limit, in watts.")
    fan_speed_pct: float | None = optional("Fan speed, in per cent of its maximum.")


class CPUEnvironment(Record):
    """The host's processor."""

    governor: str | None = optional("Frequency governor, e.g. `performance`.")
    model: str | None = optional("Processor model.")
    platform: str | None = optional("Operating system and machine type.")
    cores: int | None = optional("Physical cores.")
    threads: int | None = optional("Hardware threads.")
    usable_threads: int | None = optional("Hardware threads that the run may use, by its affinity.")
    memory_total_mb: float | None = optional("Memory of the machine, in MB of 2^20 bytes.")
    load_1min: float | None = optional(
        "Processes running or waiting to, over the whole machine, as a mean of the minute before the run."
    )


class ContainerEnvironment(Record):
    """Whether the run was inside a container."""

    detected: bool = Field(default=False, description="Whether a container was recognised.")
    runtime: str | None = optional("Container runtime, e.g. `docker`.")


class EnvironmentMetadata(Record):
    """The first GPU of a run and what is around it."""

    gpu: GPUEnvironment = Field(description="The GPU.")
    cuda: CUDAEnvironment = empty(CUDAEnvironment, "CUDA and driver.")
    thermal: ThermalEnvironment = empty(ThermalEnvironment, "Temperature and limits.")
    cpu: CPUEnvironment = empty(CPUEnvironment, "The processor.")
    container: ContainerEnvironment = empty(ContainerEnvironment, "The container.")
    collected_at: datetime | None = optional("When this was collected (UTC).")

    @property
    def summary_line(self) -> str:
        """One line for people: `A100 80GB | CUDA 12.4 | Driver 535.104 | 42C | container`; unknown parts left out."""
        name, vram_mb = self.gpu.name.removeprefix("NVIDIA "), self.gpu.vram_total_mb
        parts = [name if "GB" in name or vram_mb is None else f"{name} {vram_mb * 1e6 / 2**30:.0f}GB"]
        if self.cuda.version is not None:
            parts.append(f"CUDA {self.cuda.version}")
        if self.cuda.driver_version is not None:
            parts.append(f"Driver {self.cuda.driver_version}")
        if self.thermal.temperature_c is not None:
            parts.append(f"{self.thermal.temperature_c:.0f}C")
        if self.container.detected:
            parts.append("container")
        return " | ".join(parts)


_PER_GPU: Final = "one entry per GPU, in one order"
PerGPU = Annotated[list[T], _PER_GPU]
"""A fact of each GPU in use."""


class EnvironmentSnapshot(Record):
    """Everything about the machine and its software that may move a figure; nothing secret."""

    python_version: str = Field(description="Python version.")
    tool_version: str = Field(description="Version of llenergymeasure.")
    platform: str = Field(description="Operating system, release and machine type.")
    cuda_version: str | None = optional("CUDA version.")
    cuda_version_source: str | None = optional("Where the CUDA version came from: `torch`, `version_file` or `nvcc`.")
    cuda_driver_version: str | None = optional("NVIDIA driver version.")
    os_version: str | None = optional("Distribution and its version.")
    gpu_names: PerGPU[str] = empty(list, "Marketing name of each GPU in use.")
    gpu_uuids: PerGPU[str] = empty(list, "UUID of each GPU in use.")
    gpu_vram_mb: PerGPU[float | None] = empty(list, "Total memory of each GPU, in MB (10^6 B); null: not told.")
    gpu_persistence_mode: PerGPU[bool | None] = empty(list, "Persistence mode of each GPU; null: not told.")
    gpu_power_limit_w: PerGPU[float | None] = empty(list, "Enforced power limit of each GPU, in watts; null: not told.")
    gpu_max_sm_clock_mhz: PerGPU[float | None] = empty(list, "Highest SM clock of each GPU, in MHz; null: not told.")
    cpu: CPUEnvironment | None = optional("The processor.")
    container: ContainerEnvironment | None = optional("The container.")
    pip_freeze: list[str] = empty(
        list, "Installed packages, `name==version`, sorted; with the commit where installed from one."
    )
    hardware: EnvironmentMetadata | None = optional("The first GPU; null without one.")

    @property
    def kind(self) -> str:
        """What the hardware is called, see `hardware_kind`."""
        return hardware_kind(self.gpu_names, None if self.cpu is None else self.cpu.model)


def merge_environments(parts: Sequence[EnvironmentSnapshot]) -> EnvironmentSnapshot:
    """The first process's snapshot with the GPUs of all."""
    per_gpu = [name for name, field in EnvironmentSnapshot.model_fields.items() if _PER_GPU in field.metadata]
    merged: dict[str, list[object]] = {name: list(getattr(parts[0], name)) for name in per_gpu}
    for part in parts[1:]:
        for index, uuid in enumerate(part.gpu_uuids):
            if uuid not in merged["gpu_uuids"]:
                for name in per_gpu:
                    merged[name] += getattr(part, name)[index : index + 1]
    return parts[0].model_copy(update=merged)


def hardware_kind(gpu_names: Sequence[str], cpu: str | None) -> str:
    """What a measurement's hardware is called: its GPUs, each name once, or its processor; alike ones compare."""
    return " + ".join(dict.fromkeys(gpu_names)) or cpu or "unknown hardware"


class Timestamps(Record):
    """A stretch of time."""

    start: datetime = Field(description="Start on the wall clock (UTC).")
    end: datetime = Field(description="End on the wall clock (UTC).")
    duration_sec: float = Field(ge=0, description="Length in seconds, on a monotonic clock.")


class DatasetInfo(Record):
    """Which prompts were used."""

    name: Annotated[str, Column(9, "", "Data set", "dataset")] = Field(description="Name or path as configured.")
    sha256: Annotated[str | None, Column(10, "", "SHA-256 of the prompts", "dataset_sha256")] = optional(
        "SHA-256 of the prompts; null: not known."
    )
    prompt_count: int = Field(ge=0, description="Prompts used in the window.")
    revision: str | None = optional("Revision of a data set from the Hub.")


class DeviceElsewhere(Record):
    """A device on another machine than the experiment's process, and how that machine's clock was compared."""

    node: str = Field(description="Name of its machine.")
    offset_s: float = Field(description="How far that machine's clock was ahead when the window opened, in seconds.")
    drift_s: float = Field(description="By how much more it was at the window's end, in seconds.")
    half_width_s: float = Field(ge=0, description="How far the offset may be from that at either edge, in seconds.")


class MeasurementBoundary(Record):
    """What the energy of the window includes, in space and in time."""

    devices: Annotated[list[str], Merge(distinct)] = Field(description="Metered devices: GPU UUIDs, or `cpu`.")
    device_names: list[str] = empty(list, "Their marketing names, in the same order.")
    elsewhere: Annotated[dict[str, DeviceElsewhere], Merge(united)] = empty(dict, "Those on other machines, by device.")
    scope: Same[EnergyScope | None] = optional("What of each device is metered; null: nothing.")
    includes: list[str] = empty(list, "Work inside the window.")
    excludes: list[str] = empty(list, "Work outside the window.")


def merge_boundaries(parts: Sequence[MeasurementBoundary]) -> MeasurementBoundary:
    """One boundary around the devices of all processes, each named once."""
    names: dict[str, str] = {}
    for part in parts:
        names.update(zip(part.devices, part.device_names or part.devices, strict=False))
    named = any(part.device_names for part in parts)
    return merge_records(parts).model_copy(update={"device_names": list(names.values()) if named else []})


class AggregationMetadata(Record):
    """How the records of the processes became one result, and whether they fit together."""

    num_processes: int = Field(ge=1, description="Processes aggregated.")
    expected_processes: int | None = optional("Processes that should have taken part.")
    complete: bool | None = optional("Whether every check of completeness passed.")
    completeness_error: str | None = optional("What the checks found missing.")
    gpu_attribution_verified: bool = Field(
        default=False, description="Whether every joule was traced to a device and counted once."
    )
    shared_devices: dict[str, list[int]] = empty(dict, "Devices used by several processes, and the indices of those.")
    temporal_overlap_verified: bool = Field(
        default=False, description="Whether the processes' windows ran side by side."
    )
    overlap_pct: float | None = optional("Time common to all windows, in per cent of the common window.")
    common_window_sec: float | None = optional("First start to last end of the windows, in seconds.")
    warnings: list[str] = empty(list, "`code: explanation` of each failed check.")
