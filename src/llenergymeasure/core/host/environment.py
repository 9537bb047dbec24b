"""The machine and its software, as far as they may move a figure: one snapshot per run, with nothing secret in it.

Taken in the background while other work waits, and complete before the model loads. A part that cannot be had is
`None`, with the reason in the log; it never costs the run.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeVar

from llenergymeasure.constants import VERSION
from llenergymeasure.core.gpu.driver import MB, DriverMissingError, GpuDriver
from llenergymeasure.core.gpu.facts import GpuFacts, read_gpu_facts
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import visible_gpus
from llenergymeasure.core.host.cuda_version import find_cuda_version, installed_torch_dir
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


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True)
class EnvironmentSources:
    """Where the parts of a snapshot are found; tests pass their own.

    Args:
        environ: Environment variables that decide what a program here sees; their values are not recorded.
        open_nvml: Gives the machine's NVML or raises `GpuDriverError`.
        root: Root of the file system, for what the kernel and container runtimes tell.
        torch_dir: Directory of the torch package, or `None`.
        packages: Installed packages, `name==version`.
        now: The time (UTC).
    """

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    open_nvml: Callable[[], GpuDriver] = open_nvml
    root: Path = Path("/")
    torch_dir: Callable[[], Path | None] = installed_torch_dir
    packages: Callable[[], list[str]] = lambda: installed_packages()
    now: Callable[[], datetime] = _utc_now


def collect_environment(sources: EnvironmentSources | None = None) -> EnvironmentSnapshot:
    """Take a snapshot now. Never fails: a part that cannot be had is missing, and the log says why.

    Args:
        sources: Where to look; by default, this machine.
    """
    sources = sources or EnvironmentSources()
    driver, gpus = _part("GPUs", lambda: _read_gpus(sources)) or (None, ())
    cuda = _part("CUDA version", lambda: find_cuda_version(sources.environ, sources.torch_dir()))
    cpu = _part("processor", lambda: read_cpu(sources.root))
    container = _part("container", lambda: detect_container(sources.environ, sources.root))
    cuda_environment = CUDAEnvironment(
        version=cuda.version if cuda else None, driver_version=driver, cudnn_version=_part("cuDNN version", _cudnn)
    )
    return _snapshot(
        cuda_version=cuda.version if cuda else None,
        cuda_version_source=cuda.source if cuda else None,
        cuda_driver_version=driver,
        os_version=_part("distribution", lambda: _distribution(sources.root)),
        gpu_names=[gpu.name for gpu in gpus],
        gpu_uuids=[gpu.uuid for gpu in gpus],
        gpu_vram_mb=[_as_nvidia_smi_mb(gpu.memory_total_mb) for gpu in gpus],
        gpu_persistence_mode=[gpu.persistence_mode for gpu in gpus],
        gpu_power_limit_w=[gpu.power_limit_w for gpu in gpus],
        gpu_max_sm_clock_mhz=[gpu.max_sm_clock_mhz for gpu in gpus],
        cpu=cpu,
        container=container,
        pip_freeze=_part("installed packages", sources.packages) or [],
        hardware=_hardware(gpus[0], cuda_environment, cpu, container, sources.now()) if gpus else None,
    )


class PendingSnapshot:
    """A snapshot that is being taken on a thread of its own."""

    def __init__(self, sources: EnvironmentSources | None) -> None:
        self._sources = sources
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
        self._snapshot = collect_environment(self._sources)
        self._complete.set()


@contextmanager
def environment_in_background(sources: EnvironmentSources | None = None) -> Iterator[PendingSnapshot]:
    """Take a snapshot while the block does something else; it is complete when the block ends well.

    Args:
        sources: Where to look; by default, this machine.
    """
    pending = PendingSnapshot(sources)
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


def _read_gpus(sources: EnvironmentSources) -> tuple[str, tuple[GpuFacts, ...]]:
    nvml = sources.open_nvml()
    gpus = visible_gpus(sources.environ, nvml)
    return nvml.driver_version(), tuple(read_gpu_facts(nvml, gpu.uuid, gpu.board_uuid) for gpu in gpus)


def _hardware(
    gpu: GpuFacts,
    cuda: CUDAEnvironment,
    cpu: CPUEnvironment | None,
    container: ContainerEnvironment | None,
    collected_at: datetime,
) -> EnvironmentMetadata:
    return EnvironmentMetadata(
        gpu=GPUEnvironment(
            name=gpu.name,
            vram_total_mb=_as_nvidia_smi_mb(gpu.memory_total_mb),
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


def _as_nvidia_smi_mb(memory_mb: float | None) -> float | None:
    """MB of 10^6 bytes in MB of 2^20 bytes, which is what nvidia-smi and these records mean by MB."""
    return None if memory_mb is None else round(memory_mb * MB / 2**20, 1)


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


def installed_packages(distributions: Iterable[metadata.Distribution] | None = None) -> list[str]:
    """Every installed distribution as `name==version`, sorted by name.

    One installed from version control carries its commit (`name==version (git 0123abcd…)`). Neither local paths nor
    addresses are told: they name users and may hold tokens.

    Args:
        distributions: What to list; by default everything that can be imported. Of two with one name the first is
            listed, which is the one that an import finds.
    """
    lines: dict[str, str] = {}
    for distribution in metadata.distributions() if distributions is None else distributions:
        if "Name" not in distribution.metadata:  # a damaged installation
            continue
        name = distribution.metadata["Name"]
        if name.lower() not in lines:
            lines[name.lower()] = f"{name}=={distribution.version}{_commit(distribution)}"
    return [lines[key] for key in sorted(lines)]


def installed_version(package: str) -> str | None:
    """Version of a distribution; `None`: not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(distribution: metadata.Distribution) -> str:
    """The version-control commit from `direct_url.json` (PEP 610), or nothing."""
    text = distribution.read_text("direct_url.json")
    if text is None:
        return ""
    try:
        origin: Any = json.loads(text).get("vcs_info") or {}
        return f" ({origin['vcs']} {origin['commit_id']})" if "commit_id" in origin else ""
    except (ValueError, AttributeError, KeyError):
        return ""


def read_cpu(root: Path = Path("/")) -> CPUEnvironment:
    """Model and frequency governor of the processor.

    Args:
        root: Where `proc` and `sys` are.
    """
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
        root: The file system's root.
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
