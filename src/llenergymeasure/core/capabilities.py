"""What this machine can measure with, each part proved, or with the reason against it and the way to get it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from llenergymeasure.config.engines import known_backends
from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.core.backends.registry import package_versions
from llenergymeasure.core.energy.select import CPU_PRIORITY, GPU_PRIORITY, describe_energy_backends
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.gpu.driver import DeviceId, DriverMissingError, Gpu, GpuDriverError
from llenergymeasure.core.gpu.visible import visible_gpus
from llenergymeasure.core.host.docker import default_image, docker_version, find_image
from llenergymeasure.core.host.environment import CudaVersion, detect_container, find_cuda_version, read_cpu
from llenergymeasure.core.host.host import Capability, Host
from llenergymeasure.domain.environment import ContainerEnvironment, CPUEnvironment
from llenergymeasure.exceptions import LLEMError


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this machine can do.

    Args:
        gpu_problem: Why there are none.
        images: Of the backends, by their names; none where Docker does not work.
        cuda: CUDA release of the software, if there is one.
    """

    gpus: tuple[Gpu, ...]
    gpu_problem: str | None
    driver_version: str | None
    cuda: CudaVersion | None
    cpu: CPUEnvironment
    container: ContainerEnvironment
    docker: Capability
    images: tuple[Capability, ...]
    engines: tuple[Capability, ...]
    meters: tuple[Capability, ...]


_SHOWN_DIGEST: Final = len("sha256:") + 12

ReadMeters = Callable[[Sequence[DeviceId], Host], Sequence[Capability]]


def _read_meters(devices: Sequence[DeviceId], host: Host) -> Sequence[Capability]:
    return describe_energy_backends(devices, MeterOptions(calibration_dir=host.calibration_dir), host)


def collect_capabilities(
    host: Host | None = None,
    versions_of: Callable[[str], Mapping[str, str]] = package_versions,
    read_meters: ReadMeters = _read_meters,
    image_of: Callable[[str], str] = default_image,
) -> Capabilities:
    """Look at everything; nothing is written, no engine is imported and no model is loaded.

    Args:
        image_of: The image in which a backend would run.
    """
    host = host or Host()
    driver_version, gpus, gpu_problem = _look_for_gpus(host)
    docker = _tried("docker", partial(docker_version, host.environ))

    def versions(engine: str) -> str:
        return ", ".join(f"{package} {version}" for package, version in versions_of(engine).items())

    def image(backend: str) -> str:
        found = find_image(image_of(backend), host.environ)
        return f"{found.name}, {found.version or 'of an unknown release'} ({found.digest[:_SHOWN_DIGEST]}…)"

    return Capabilities(
        gpus=gpus,
        gpu_problem=gpu_problem,
        driver_version=driver_version,
        cuda=find_cuda_version(host.environ, host.torch_dir()),
        cpu=read_cpu(host.root),
        container=detect_container(host.environ, host.root),
        docker=docker,
        images=tuple(_tried(name, partial(image, name)) for name in BACKENDS) if docker.works else (),
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
