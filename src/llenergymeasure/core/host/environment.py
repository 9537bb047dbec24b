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
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from llenergymeasure.constants import VERSION
from llenergymeasure.core.gpu.driver import DriverMissingError, Gpu
from llenergymeasure.core.gpu.visible import visible_gpus
from llenergymeasure.core.host.host import Host, installed_version
from llenergymeasure.core.host.threads import started
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
    snapshot = _snapshot(
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
        cpu=_part("processor", lambda: read_cpu(host.root)),
        container=_part("container", lambda: detect_container(host.environ, host.root)),
        pip_freeze=_part("installed packages", host.packages) or [],
    )
    if gpus:
        snapshot = snapshot.model_copy(update={"hardware": _hardware(gpus[0], snapshot, host.clock.wall())})
    return snapshot


@contextmanager
def environment_in_background(
    host: Host | None = None, timeout_s: float = COLLECTION_TIMEOUT_S
) -> Iterator[Callable[[], EnvironmentSnapshot]]:
    """Take a snapshot while the block does something else; yields a function that waits for it, as its end does.

    Args:
        timeout_s: How long to wait at most. After that the snapshot holds versions alone, and the log says so.

    Raises:
        ExperimentError: No thread can be started.
    """
    collected: Future[EnvironmentSnapshot] = Future()

    def collect() -> None:
        collected.set_result(collect_environment(host))

    thread = started(threading.Thread(target=collect, name="llem-environment", daemon=True))

    @cache
    def snapshot() -> EnvironmentSnapshot:
        try:
            found = collected.result(timeout_s)
        except FutureTimeoutError:
            logger.warning(
                "The environment snapshot was not complete after %g s (does nvidia-smi answer?); "
                "the result will lack the machine's description.",
                timeout_s,
            )
            return _snapshot()
        thread.join()  # not the wait itself: a Ctrl-C in join() makes the thread look ended
        return found

    yield snapshot
    snapshot()


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


def _hardware(gpu: Gpu, around: EnvironmentSnapshot, collected_at: datetime) -> EnvironmentMetadata:
    return EnvironmentMetadata(
        gpu=GPUEnvironment(
            name=gpu.name,
            vram_total_mb=gpu.memory_total_mb,
            compute_capability=gpu.compute_capability,
            pcie_gen=gpu.pcie_generation,
            mig_enabled=gpu.mig_enabled,
        ),
        cuda=CUDAEnvironment(
            version=around.cuda_version,
            driver_version=around.cuda_driver_version,
            cudnn_version=_part("cuDNN version", _cudnn),
        ),
        thermal=ThermalEnvironment(
            temperature_c=gpu.temperature_c,
            power_limit_w=gpu.power_limit_w,
            default_power_limit_w=gpu.default_power_limit_w,
            fan_speed_pct=gpu.fan_speed_pct,
        ),
        cpu=around.cpu or CPUEnvironment(),
        container=around.container or ContainerEnvironment(),
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
    """The processor, its memory, and how busy the machine is around the run."""
    described = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in _read(root / "proc/cpuinfo").split("\n\n")
    ]
    threads = [block for block in described if "processor" in block]
    cores = {(block["physical id"], block["core id"]) for block in threads if {"physical id", "core id"} <= set(block)}
    memory_kib = _found(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"))
    load = _found(r"^(\d+\.\d+) ", _read(root / "proc/loadavg"))
    return CPUEnvironment(
        governor=_governor(root / "sys/devices/system/cpu"),
        model=_model(described) or platform.processor() or None,
        platform=f"{platform.system()} {platform.machine()}",
        cores=len(cores) or None,
        threads=len(threads) or None,
        usable_threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        memory_total_mb=round(int(memory_kib) / 1024, 1) if memory_kib else None,
        load_1min=float(load) if load else None,
    )


def _model(described: Sequence[Mapping[str, str]]) -> str | None:
    """The first `model name` (x86) or `Model`/`Hardware` line (some ARM systems)."""
    names = (block[key] for key in ("model name", "Model", "Hardware") for block in described if block.get(key))
    return next(names, None)


def _governor(cpus: Path) -> str | None:
    """The governor of all cores; several, sorted, where they differ. `None` where the kernel scales nothing."""
    found = {_read(path).strip() for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(found - {""})) or None  # nothing: a core that was taken offline meanwhile


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
    ("kubepods", "kubernetes"),
    ("libpod", "podman"),
    ("docker", "docker"),
    ("lxc", "lxc"),
    ("containerd", "containerd"),
)


def detect_container(environ: Mapping[str, str], root: Path = Path("/")) -> ContainerEnvironment:
    """Recognise the container around this process by what its runtime leaves behind; no variable's value is read."""
    runtime = next(_container_signs(environ, root), None)
    return ContainerEnvironment(detected=runtime is not None, runtime=runtime)


def _container_signs(environ: Mapping[str, str], root: Path) -> Iterator[str]:
    """Names of the runtime, the surest first."""
    yield from (runtime for name, runtime in _ENVIRONMENT_SIGNS if name in environ)
    yield from (runtime for name, runtime in _FILE_SIGNS if (root / name).exists())
    # What the manager wrote for systemd: https://systemd.io/CONTAINER_INTERFACE, by name.
    if re.fullmatch(r"[a-z][a-z0-9-]*", name := _read(root / "run/systemd/container").strip()):
        yield name
    # The path of the first process's control group (version 1; version 2 hides it inside a namespace).
    groups = _read(root / "proc/1/cgroup")
    yield from (runtime for sign, runtime in _CGROUP_SIGNS if sign in groups)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


TOOLKIT_DIR: Final = Path("/usr/local/cuda")
"""Where NVIDIA's installer puts the toolkit."""

NVCC_TIMEOUT_S: Final = 10.0

_RELEASE: Final = r"(\d+\.\d+(?:\.\d+)?)"


@dataclass(frozen=True, slots=True)
class CudaVersion:
    """A CUDA release and who told it."""

    version: str
    source: Literal["torch", "version_file", "nvcc"]


def find_cuda_version(environ: Mapping[str, str], torch_dir: Path | None = None) -> CudaVersion | None:
    """Which CUDA release this machine's software runs on, found without starting CUDA or importing torch.

    Asked in this order, since the first is what the measured program really uses: the CUDA that the installed torch was
    built with, the toolkit's version file, the toolkit's compiler. `None` where none of them tells.

    Args:
        environ: In which the toolkit is looked for (`CUDA_HOME`, `CUDA_PATH`, `PATH`).
        torch_dir: Directory of the torch package; `None`: there is none.
    """
    toolkit = Path(environ.get("CUDA_HOME") or environ.get("CUDA_PATH") or TOOLKIT_DIR)
    if torch_dir is not None:  # a CPU build has `cuda = None` there
        built_with = _found(rf"^cuda\b[^=\n]*=\s*['\"]{_RELEASE}", _read(torch_dir / "version.py"))
        if built_with is not None:
            return CudaVersion(built_with, "torch")
    if version := _of_version_file(toolkit):
        return CudaVersion(version, "version_file")
    if version := _of_nvcc(toolkit, environ):
        return CudaVersion(version, "nvcc")
    return None


def _of_version_file(toolkit: Path) -> str | None:
    """`version.json` (toolkits since 11.1), else `version.txt` (older ones)."""
    try:
        return str(json.loads(_read(toolkit / "version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return _found(rf"CUDA Version {_RELEASE}", _read(toolkit / "version.txt"))


def _of_nvcc(toolkit: Path, environ: Mapping[str, str]) -> str | None:
    for nvcc in ("nvcc", str(toolkit / "bin" / "nvcc")):
        try:
            answer = subprocess.run(
                [nvcc, "--version"], env=dict(environ), capture_output=True, text=True, timeout=NVCC_TIMEOUT_S
            )
        except (OSError, ValueError, subprocess.TimeoutExpired):
            continue
        if version := _found(rf"release {_RELEASE}", answer.stdout):
            return version
    return None


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None
