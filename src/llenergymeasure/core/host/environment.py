"""The machine and its software, as far as they may move a figure: one snapshot per run, with nothing secret in it.

Taken in the background while other work waits, and complete before the model loads. A part that cannot be had is
`None`, with the reason in the log; it never costs the run.
"""

from __future__ import annotations

import logging
import platform
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from llenergymeasure.constants import VERSION
from llenergymeasure.core.gpu.driver import DriverMissingError, Gpu
from llenergymeasure.core.gpu.visible import visible_gpus
from llenergymeasure.core.host.cuda_version import find_cuda_version
from llenergymeasure.core.host.host import Host, installed_version
from llenergymeasure.domain.environment import (
    ContainerEnvironment,
    CPUEnvironment,
    CUDAEnvironment,
    EnvironmentMetadata,
    EnvironmentSnapshot,
    GPUEnvironment,
    ThermalEnvironment,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

COLLECTION_TIMEOUT_S: Final = 60.0
"""Longest wait for a snapshot; it takes about a second. Beyond, a driver or a file system hangs."""


def collect_environment(host: Host | None = None) -> EnvironmentSnapshot:
    """Take a snapshot now. Never fails: a part that cannot be had is missing, and the log says why."""
    host = host or Host()
    driver, gpus = _part("GPUs", lambda: _read_gpus(host)) or (None, ())
    cuda = _part("CUDA version", lambda: find_cuda_version(host.environ, host.torch_dir()))
    cpu = _part("processor", lambda: read_cpu(host.root))
    container = _part("container", lambda: detect_container(host.environ, host.root))
    cuda_environment = CUDAEnvironment(
        version=cuda.version if cuda else None, driver_version=driver, cudnn_version=_part("cuDNN version", _cudnn)
    )
    return _snapshot(
        cuda_version=cuda.version if cuda else None,
        cuda_version_source=cuda.source if cuda else None,
        cuda_driver_version=driver,
        os_version=_part("distribution", lambda: _distribution(host.root)),
        gpu_names=[gpu.name for gpu in gpus],
        gpu_uuids=[gpu.uuid for gpu in gpus],
        gpu_vram_mb=[gpu.memory_total_mb for gpu in gpus],
        gpu_persistence_mode=[gpu.persistence_mode for gpu in gpus],
        gpu_power_limit_w=[gpu.power_limit_w for gpu in gpus],
        gpu_max_sm_clock_mhz=[gpu.max_sm_clock_mhz for gpu in gpus],
        cpu=cpu,
        container=container,
        pip_freeze=_part("installed packages", host.packages) or [],
        hardware=_hardware(gpus[0], cuda_environment, cpu, container, host.clock.wall()) if gpus else None,
    )


class PendingSnapshot:
    """A snapshot that is being taken on a thread of its own."""

    def __init__(self, host: Host | None) -> None:
        self._host = host
        self._snapshot: EnvironmentSnapshot | None = None
        self._complete = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="llem-environment", daemon=True)
        self._thread.start()

    def result(self, timeout_s: float = COLLECTION_TIMEOUT_S) -> EnvironmentSnapshot:
        """The snapshot; waits until it is complete.

        Args:
            timeout_s: Seconds to wait at most. After them the snapshot holds versions alone, and the log says so.
        """
        if self._snapshot is None and self._complete.wait(timeout_s):
            self._thread.join()  # not the wait itself: a Ctrl-C in join() makes the thread look ended
        if self._snapshot is None:
            logger.warning(
                "The environment snapshot was not complete after %g s (does nvidia-smi answer?); "
                "the result will lack the machine's description.",
                timeout_s,
            )
            self._snapshot = _snapshot()
        return self._snapshot

    def _collect(self) -> None:
        self._snapshot = collect_environment(self._host)
        self._complete.set()


@contextmanager
def environment_in_background(host: Host | None = None) -> Iterator[PendingSnapshot]:
    """Take a snapshot while the block does something else; it is complete when the block ends well."""
    pending = PendingSnapshot(host)
    yield pending
    pending.result()


def _snapshot(**facts: Any) -> EnvironmentSnapshot:
    """A snapshot of `facts` and the versions that are always known."""
    return EnvironmentSnapshot(
        python_version=platform.python_version(),
        tool_version=VERSION,
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        **facts,
    )


def _part(what: str, read: Callable[[], T]) -> T | None:
    try:
        return read()
    except DriverMissingError as error:  # a machine without NVIDIA GPUs, which is nothing to warn about
        logger.debug("%s: %s", what, error)
    except Exception as error:  # noqa: BLE001  (whatever a machine's description does, the measurement goes on)
        logger.warning("The environment snapshot lacks the %s: %s: %s", what, type(error).__name__, error)
    return None


def _read_gpus(host: Host) -> tuple[str, tuple[Gpu, ...]]:
    driver = host.open_driver()
    return driver.driver_version(), visible_gpus(host.environ, driver)


def _hardware(
    gpu: Gpu,
    cuda: CUDAEnvironment,
    cpu: CPUEnvironment | None,
    container: ContainerEnvironment | None,
    collected_at: datetime,
) -> EnvironmentMetadata:
    return EnvironmentMetadata(
        gpu=GPUEnvironment(
            name=gpu.name,
            vram_total_mb=gpu.memory_total_mb,
            compute_capability=gpu.compute_capability,
            pcie_gen=gpu.pcie_generation,
            mig_enabled=gpu.mig_enabled,
        ),
        cuda=cuda,
        thermal=ThermalEnvironment(
            temperature_c=gpu.temperature_c,
            power_limit_w=gpu.power_limit_w,
            default_power_limit_w=gpu.default_power_limit_w,
            fan_speed_pct=gpu.fan_speed_pct,
        ),
        cpu=cpu or CPUEnvironment(),
        container=container or ContainerEnvironment(),
        collected_at=collected_at,
    )


def _distribution(root: Path) -> str | None:
    """`PRETTY_NAME` of os-release (https://www.freedesktop.org/software/systemd/man/os-release.html)."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8", errors="replace").splitlines()
            values = dict(line.split("=", 1) for line in lines if "=" in line)
            return values.get("PRETTY_NAME", "").strip("\"' ") or None
    return platform.mac_ver()[0] or None


def _cudnn() -> str | None:
    """Version of the cuDNN wheel that torch brings; nothing is loaded to ask for it."""
    names = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-cu11")
    return next((version for name in names if (version := installed_version(name)) is not None), None)


def read_cpu(root: Path = Path("/")) -> CPUEnvironment:
    """Model and frequency governor of the processor."""
    return CPUEnvironment(
        governor=_governor(root / "sys/devices/system/cpu"),
        model=_model(root / "proc/cpuinfo") or platform.processor() or None,
        platform=f"{platform.system()} {platform.machine()}",
    )


def _model(cpuinfo: Path) -> str | None:
    """The first `model name` (x86) or `Model`/`Hardware` line (some ARM systems)."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return next((values[key] for key in ("model name", "Model", "Hardware") if values.get(key)), None)


def _governor(cpus: Path) -> str | None:
    """The governor of all cores; several, sorted, where they differ. `None` where the kernel scales nothing."""
    found = set()
    for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            found.add(path.read_text(encoding="utf-8").strip())
        except OSError:  # a core that was taken offline meanwhile
            continue
    return ", ".join(sorted(found)) or None


_ENVIRONMENT_SIGNS: Final = (
    ("KUBERNETES_SERVICE_HOST", "kubernetes"),
    ("APPTAINER_CONTAINER", "apptainer"),
    ("SINGULARITY_CONTAINER", "singularity"),
)

_FILE_SIGNS: Final = (
    ("var/run/secrets/kubernetes.io", "kubernetes"),
    (".singularity.d", "singularity"),
    ("run/.containerenv", "podman"),
    (".dockerenv", "docker"),
)
"""Files that a runtime leaves in its containers; the outer runtime (Kubernetes) before the inner one."""

_CGROUP_SIGNS: Final = (
    (r"kubepods", "kubernetes"),
    (r"libpod", "podman"),
    (r"docker", "docker"),
    (r"lxc", "lxc"),
    (r"containerd", "containerd"),
)


def detect_container(environ: Mapping[str, str], root: Path = Path("/")) -> ContainerEnvironment:
    """Recognise the container around this process by what its runtime leaves behind.

    Args:
        environ: This process's environment; only the presence of names is looked at.
    """
    runtime = _by_environment(environ) or _by_file(root) or _by_manager(root) or _by_cgroup(root)
    return ContainerEnvironment(detected=runtime is not None, runtime=runtime)


def _by_environment(environ: Mapping[str, str]) -> str | None:
    return next((runtime for name, runtime in _ENVIRONMENT_SIGNS if name in environ), None)


def _by_file(root: Path) -> str | None:
    return next((runtime for name, runtime in _FILE_SIGNS if (root / name).exists()), None)


def _by_manager(root: Path) -> str | None:
    """What the manager wrote for systemd: https://systemd.io/CONTAINER_INTERFACE, by name."""
    name = _read(root / "run/systemd/container").strip()
    return name if re.fullmatch(r"[a-z][a-z0-9-]*", name) else None


def _by_cgroup(root: Path) -> str | None:
    """The path of the first process's control group (version 1; version 2 hides it inside a namespace)."""
    groups = _read(root / "proc/1/cgroup")
    return next((runtime for sign, runtime in _CGROUP_SIGNS if re.search(sign, groups)), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
