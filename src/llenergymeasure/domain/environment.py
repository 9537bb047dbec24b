"""What machine and software a run met."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from llenergymeasure.domain.base import Record


class GPUEnvironment(Record):
    """One GPU."""

    name: str = Field(description="Marketing name.")
    vram_total_mb: float | None = Field(
        ge=0,
        description="Total memory in MB of 2^20 bytes, as nvidia-smi prints it; null: not told (boards that share the "
        "host's memory).",
    )
    compute_capability: str | None = Field(default=None, description="CUDA compute capability, e.g. `8.0`.")
    pcie_gen: int | None = Field(default=None, description="PCIe generation of the current link.")
    mig_enabled: bool | None = Field(default=None, description="Whether the board is cut into MIG slices.")


class CUDAEnvironment(Record):
    """CUDA and driver."""

    version: str | None = Field(default=None, description="CUDA version, e.g. `12.4`.")
    driver_version: str | None = Field(default=None, description="NVIDIA driver version.")
    cudnn_version: str | None = Field(default=None, description="cuDNN version.")


class ThermalEnvironment(Record):
    """Temperature and power limits when the run began."""

    temperature_c: float | None = Field(default=None, description="GPU temperature, in degrees Celsius.")
    power_limit_w: float | None = Field(default=None, description="Enforced power limit, in watts.")
    default_power_limit_w: float | None = Field(default=None, description="Factory power limit, in watts.")
    fan_speed_pct: float | None = Field(default=None, description="Fan speed, in per cent of its maximum.")


class CPUEnvironment(Record):
    """The host's processor."""

    governor: str | None = Field(default=None, description="Frequency governor, e.g. `performance`.")
    model: str | None = Field(default=None, description="Processor model.")
    platform: str | None = Field(default=None, description="Operating system and machine type.")


class ContainerEnvironment(Record):
    """Whether the run was inside a container."""

    detected: bool = Field(default=False, description="Whether a container was recognised.")
    runtime: str | None = Field(default=None, description="Container runtime, e.g. `docker`.")


class EnvironmentMetadata(Record):
    """The first GPU of a run and what is around it."""

    gpu: GPUEnvironment = Field(description="The GPU.")
    cuda: CUDAEnvironment = Field(default_factory=CUDAEnvironment, description="CUDA and driver.")
    thermal: ThermalEnvironment = Field(default_factory=ThermalEnvironment, description="Temperature and limits.")
    cpu: CPUEnvironment = Field(default_factory=CPUEnvironment, description="The processor.")
    container: ContainerEnvironment = Field(default_factory=ContainerEnvironment, description="The container.")
    collected_at: datetime | None = Field(default=None, description="When this was collected (UTC).")

    @property
    def summary_line(self) -> str:
        """One line for people: `A100 80GB | CUDA 12.4 | Driver 535.104 | 42C | container`; unknown parts left out."""
        name, vram_mb = self.gpu.name.removeprefix("NVIDIA "), self.gpu.vram_total_mb
        parts = [name if "GB" in name or vram_mb is None else f"{name} {vram_mb / 1024:.0f}GB"]
        if self.cuda.version is not None:
            parts.append(f"CUDA {self.cuda.version}")
        if self.cuda.driver_version is not None:
            parts.append(f"Driver {self.cuda.driver_version}")
        if self.thermal.temperature_c is not None:
            parts.append(f"{self.thermal.temperature_c:.0f}C")
        if self.container.detected:
            parts.append("container")
        return " | ".join(parts)


class EnvironmentSnapshot(Record):
    """Everything about the machine and its software that may move a figure; nothing secret."""

    python_version: str = Field(description="Python version.")
    tool_version: str = Field(description="Version of llenergymeasure.")
    platform: str = Field(description="Operating system, release and machine type.")
    cuda_version: str | None = Field(default=None, description="CUDA version.")
    cuda_version_source: str | None = Field(
        default=None, description="Where the CUDA version came from: `torch`, `version_file` or `nvcc`."
    )
    cuda_driver_version: str | None = Field(default=None, description="NVIDIA driver version.")
    os_version: str | None = Field(default=None, description="Distribution and its version.")
    gpu_names: list[str] = Field(default_factory=list, description="Marketing name of each GPU in use.")
    gpu_uuids: list[str] = Field(default_factory=list, description="UUID of each GPU in use.")
    gpu_vram_mb: list[float | None] = Field(
        default_factory=list,
        description="Total memory of each GPU in MB of 2^20 bytes, as nvidia-smi prints it; null: not told.",
    )
    gpu_persistence_mode: list[bool | None] = Field(
        default_factory=list, description="Persistence mode of each GPU; null: not told."
    )
    gpu_power_limit_w: list[float | None] = Field(
        default_factory=list, description="Enforced power limit of each GPU, in watts; null: not told."
    )
    gpu_max_sm_clock_mhz: list[float | None] = Field(
        default_factory=list, description="Highest SM clock of each GPU, in MHz; null: not told."
    )
    cpu: CPUEnvironment | None = Field(default=None, description="The processor.")
    container: ContainerEnvironment | None = Field(default=None, description="The container.")
    pip_freeze: list[str] = Field(
        default_factory=list,
        description="Installed packages, `name==version`, sorted; with the commit where installed from one.",
    )
    hardware: EnvironmentMetadata | None = Field(default=None, description="The first GPU; null without one.")
