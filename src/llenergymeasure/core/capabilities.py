"""What this machine can measure with, each part proved, or with the reason against it and the way to get it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.core.backends.registry import package_versions
from llenergymeasure.core.energy.select import CPU_PRIORITY, GPU_PRIORITY, BackendReading, describe_energy_backends
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.gpu.driver import DeviceId, DriverMissingError, Gpu, GpuDriverError
from llenergymeasure.core.gpu.visible import visible_gpus
from llenergymeasure.core.host.environment import CudaVersion, detect_container, find_cuda_version, read_cpu
from llenergymeasure.core.host.host import Host
from llenergymeasure.domain.environment import ContainerEnvironment, CPUEnvironment
from llenergymeasure.exceptions import BackendError, DockerError


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that can be used, or not.

    Args:
        detail: The proof (a version, a reading), or why not and what to do.
    """

    name: str
    works: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this machine can do.

    Args:
        gpu_problem: Why there are none.
        cuda: CUDA release of the software, if there is one.
    """

    gpus: tuple[Gpu, ...]
    gpu_problem: str | None
    driver_version: str | None
    cuda: CudaVersion | None
    cpu: CPUEnvironment
    container: ContainerEnvironment
    docker: Capability
    engines: tuple[Capability, ...]
    meters: tuple[Capability, ...]


def _read_meters(devices: Sequence[DeviceId], host: Host) -> Sequence[BackendReading]:
    return describe_energy_backends(devices, MeterOptions(calibration_dir=host.calibration_dir), host)


def collect_capabilities(
    host: Host | None = None,
    versions_of: Callable[[str], Mapping[str, str]] = package_versions,
    read_meters: Callable[[Sequence[DeviceId], Host], Sequence[BackendReading]] = _read_meters,
) -> Capabilities:
    """Look at everything; nothing is written, no engine is imported and no model is loaded."""
    host = host or Host()
    driver_version, gpus, gpu_problem = _look_for_gpus(host)
    return Capabilities(
        gpus=gpus,
        gpu_problem=gpu_problem,
        driver_version=driver_version,
        cuda=find_cuda_version(host.environ, host.torch_dir()),
        cpu=read_cpu(host.root),
        container=detect_container(host.environ, host.root),
        docker=_try_docker(host.environ),
        engines=tuple(_try_engine(name, versions_of) for name in BACKENDS),
        meters=_told(read_meters(tuple(gpu.uuid for gpu in gpus), host)),
    )


def _look_for_gpus(host: Host) -> tuple[str | None, tuple[Gpu, ...], str | None]:
    """Driver, GPUs, and why there are none."""
    try:
        driver = host.open_driver()
        driver_version, gpus = driver.driver_version(), visible_gpus(host.environ, driver)
    except DriverMissingError:
        return None, (), "no NVIDIA driver is loaded"
    except GpuDriverError as error:
        return None, (), str(error)
    hidden = host.environ.get("CUDA_VISIBLE_DEVICES")
    problem = f"CUDA_VISIBLE_DEVICES={hidden} hides all of them" if hidden is not None else "the driver lists none"
    return driver_version, gpus, None if gpus else problem


def _try_docker(environ: Mapping[str, str]) -> Capability:
    try:
        return Capability("docker", True, docker_version(environ))
    except DockerError as error:
        return Capability("docker", False, str(error))


def _try_engine(name: str, versions_of: Callable[[str], Mapping[str, str]]) -> Capability:
    try:
        versions = versions_of(name)
    except BackendError as error:
        return Capability(name, False, str(error))
    return Capability(name, True, ", ".join(f"{package} {version}" for package, version in versions.items()))


def _told(readings: Sequence[BackendReading]) -> tuple[Capability, ...]:
    """Every energy backend of this package; one that has nothing to measure here is told too."""
    absent = [name for name in GPU_PRIORITY + CPU_PRIORITY if name not in {reading.name for reading in readings}]
    return (
        *(Capability(reading.name, reading.available, reading.text) for reading in readings),
        *(Capability(name, False, "measures GPUs, and there is none") for name in absent),
    )


ANSWER_TIMEOUT_S: Final = 10.0


def docker_version(environ: Mapping[str, str] | None = None) -> str:
    """Version of the Docker daemon, asked of the daemon itself.

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
