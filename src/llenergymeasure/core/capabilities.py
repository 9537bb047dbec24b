"""What this machine can measure with, each part proved, or with the reason against it and the way to get it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from llenergymeasure.config.engines import known_backends
from llenergymeasure.core.backends.registry import package_versions
from llenergymeasure.core.energy.select import CPU_PRIORITY, GPU_PRIORITY, describe_energy_backends
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.gpu.driver import DeviceId, DriverMissingError, Gpu, GpuDriverError
from llenergymeasure.core.gpu.visible import visible_gpus
from llenergymeasure.core.host.environment import CudaVersion, detect_container, find_cuda_version, read_cpu
from llenergymeasure.core.host.host import Capability, Host
from llenergymeasure.domain.environment import ContainerEnvironment, CPUEnvironment
from llenergymeasure.exceptions import DockerError, LLEMError

ANSWER_TIMEOUT_S: Final = 10.0


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


ReadMeters = Callable[[Sequence[DeviceId], Host], Sequence[Capability]]


def _read_meters(devices: Sequence[DeviceId], host: Host) -> Sequence[Capability]:
    return describe_energy_backends(devices, MeterOptions(calibration_dir=host.calibration_dir), host)


def collect_capabilities(
    host: Host | None = None,
    versions_of: Callable[[str], Mapping[str, str]] = package_versions,
    read_meters: ReadMeters = _read_meters,
) -> Capabilities:
    """Look at everything; nothing is written, no engine is imported and no model is loaded."""
    host = host or Host()
    driver_version, gpus, gpu_problem = _look_for_gpus(host)

    def versions(engine: str) -> str:
        return ", ".join(f"{package} {version}" for package, version in versions_of(engine).items())

    return Capabilities(
        gpus=gpus,
        gpu_problem=gpu_problem,
        driver_version=driver_version,
        cuda=find_cuda_version(host.environ, host.torch_dir()),
        cpu=read_cpu(host.root),
        container=detect_container(host.environ, host.root),
        docker=_tried("docker", partial(docker_version, host.environ)),
        engines=tuple(_tried(name, partial(versions, name)) for name in known_backends()),
        meters=_with_absent(read_meters(tuple(gpu.uuid for gpu in gpus), host)),
    )


def _tried(name: str, prove: Callable[[], str]) -> Capability:
    try:
        return Capability(name, True, prove())
    except LLEMError as error:
        return Capability(name, False, str(error))


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


def _with_absent(meters: Sequence[Capability]) -> tuple[Capability, ...]:
    """Every energy backend of this package: one that has nothing to measure here is told too."""
    absent = [name for name in GPU_PRIORITY + CPU_PRIORITY if name not in {meter.name for meter in meters}]
    return (*meters, *(Capability(name, False, "measures GPUs, and there is none") for name in absent))


def docker_version(environ: Mapping[str, str]) -> str:
    """Version of the Docker daemon, asked of the daemon itself.

    Raises:
        DockerError: There is no client, or no daemon answers it; says what to do.
    """
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        answer = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
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
