"""What this machine can measure with, each part proved, or with the reason against it and the way to get it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.core.backends.registry import package_versions
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.calibration import default_calibration_dir
from llenergymeasure.core.energy.select import CPU_PRIORITY, GPU_PRIORITY, BackendReading, describe_energy_backends
from llenergymeasure.core.energy.types import DeviceId, MeterOptions
from llenergymeasure.core.gpu.driver import DriverMissingError, GpuDriver, GpuDriverError
from llenergymeasure.core.gpu.facts import GpuFacts, read_gpu_facts
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import visible_gpus
from llenergymeasure.core.host.cuda_version import CudaVersion, find_cuda_version, installed_torch_dir
from llenergymeasure.core.host.environment import detect_container, read_cpu
from llenergymeasure.domain.environment import ContainerEnvironment, CPUEnvironment
from llenergymeasure.exceptions import BackendError, DockerError


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that can be used, or not.

    Args:
        name: What it is called in a config.
        works: Whether it can be used now.
        detail: The proof (a version, a reading), or why not and what to do.
    """

    name: str
    works: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this machine can do.

    Args:
        gpus: The GPUs that a program started here would see, in its order.
        gpu_problem: Why there are none.
        driver_version: Version of NVIDIA's driver, if there is one.
        cuda: CUDA release of the software, if there is one.
        cpu: The processor.
        container: The container around this process.
        docker: The Docker daemon.
        engines: Every inference engine that a config may name.
        meters: Every energy backend that a config may name.
    """

    gpus: tuple[GpuFacts, ...]
    gpu_problem: str | None
    driver_version: str | None
    cuda: CudaVersion | None
    cpu: CPUEnvironment
    container: ContainerEnvironment
    docker: Capability
    engines: tuple[Capability, ...]
    meters: tuple[Capability, ...]


def _read_meters(devices: Sequence[DeviceId]) -> Sequence[BackendReading]:
    options = MeterOptions(calibration_dir=default_calibration_dir())
    return describe_energy_backends(devices, clock=SystemClock(), options=options)


@dataclass(frozen=True, slots=True)
class CapabilityProbes:
    """How the parts are looked for; tests pass their own.

    Args:
        environ: Environment of a program that would be started here.
        open_nvml: Gives the machine's NVML or raises `GpuDriverError`.
        root: Root of the file system, for what the kernel and container runtimes tell.
        torch_dir: Directory of the torch package, or `None`.
        package_versions: Versions of an engine's packages; raises `BackendError`.
        read_meters: Takes a reading with every energy backend that measures these GPUs, or the CPU.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    open_nvml: Callable[[], GpuDriver] = open_nvml
    root: Path = Path("/")
    torch_dir: Callable[[], Path | None] = installed_torch_dir
    package_versions: Callable[[str], Mapping[str, str]] = package_versions
    read_meters: Callable[[Sequence[DeviceId]], Sequence[BackendReading]] = _read_meters


def collect_capabilities(probes: CapabilityProbes) -> Capabilities:
    """Look at everything; nothing is written, no engine is imported and no model is loaded.

    Args:
        probes: How to look.
    """
    driver_version, gpus, gpu_problem = _look_for_gpus(probes)
    return Capabilities(
        gpus=gpus,
        gpu_problem=gpu_problem,
        driver_version=driver_version,
        cuda=find_cuda_version(probes.environ, probes.torch_dir()),
        cpu=read_cpu(probes.root),
        container=detect_container(probes.environ, probes.root),
        docker=_try_docker(probes.environ),
        engines=tuple(_try_engine(name, probes) for name in BACKENDS),
        meters=_try_meters(tuple(gpu.uuid for gpu in gpus), probes),
    )


def _look_for_gpus(probes: CapabilityProbes) -> tuple[str | None, tuple[GpuFacts, ...], str | None]:
    """Driver, GPUs, and why there are none."""
    try:
        nvml = probes.open_nvml()
        driver_version = nvml.driver_version()
        devices = visible_gpus(probes.environ, nvml)
        gpus = tuple(read_gpu_facts(nvml, device.uuid, device.board_uuid) for device in devices)
    except DriverMissingError:
        return None, (), "no NVIDIA driver is loaded"
    except GpuDriverError as error:
        return None, (), str(error)
    hidden = probes.environ.get("CUDA_VISIBLE_DEVICES")
    problem = f"CUDA_VISIBLE_DEVICES={hidden} hides all of them" if hidden is not None else "the driver lists none"
    return driver_version, gpus, None if gpus else problem


def _try_docker(environ: Mapping[str, str]) -> Capability:
    try:
        return Capability("docker", True, docker_version(environ))
    except DockerError as error:
        return Capability("docker", False, str(error))


def _try_engine(name: str, probes: CapabilityProbes) -> Capability:
    try:
        versions = probes.package_versions(name)
    except BackendError as error:
        return Capability(name, False, str(error))
    return Capability(name, True, ", ".join(f"{package} {version}" for package, version in versions.items()))


def _try_meters(gpus: Sequence[DeviceId], probes: CapabilityProbes) -> tuple[Capability, ...]:
    """Every energy backend of this package; one that has nothing to measure here is told too."""
    readings = probes.read_meters(gpus)
    absent = [name for name in GPU_PRIORITY + CPU_PRIORITY if name not in {reading.name for reading in readings}]
    return (
        *(Capability(reading.name, reading.available, reading.text) for reading in readings),
        *(Capability(name, False, "measures GPUs, and there is none") for name in absent),
    )


ANSWER_TIMEOUT_S: Final = 10.0


def docker_version(environ: Mapping[str, str] | None = None) -> str:
    """Version of the Docker daemon, asked of the daemon itself.

    Args:
        environ: Environment of the client (`PATH`, `DOCKER_HOST`); this process's unless given.

    Raises:
        DockerError: There is no client, or no daemon answers it; says what to do.
    """
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    environment = dict(os.environ if environ is None else environ)
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
    except FileNotFoundError as error:
        raise DockerError("Docker is not installed. See https://docs.docker.com/engine/install/") from error
    except OSError as error:
        raise DockerError(f"the Docker client cannot be started: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise DockerError(f"the Docker daemon did not answer within {ANSWER_TIMEOUT_S:g} s. Restart it.") from error
    if answer.returncode != 0 or not answer.stdout.strip():
        reason = (answer.stderr.strip() or "no reason given").splitlines()[-1]
        raise DockerError(f"the Docker daemon cannot be reached: {reason}")
    return answer.stdout.strip()
