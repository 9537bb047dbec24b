"""The machine as everything that looks at it sees it: passed in, so that a test can pass one of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

import platformdirs

from llenergymeasure.constants import APP_NAME
from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.core.gpu.driver import Gpu, GpuDriver
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import visible_gpus


def installed_packages(distributions: Iterable[metadata.Distribution] | None = None) -> list[str]:
    """Every installed distribution as `name==version`, sorted by name.

    One installed from version control carries its commit (`name==version (git 0123abcd…)`). Neither local paths nor
    addresses are told: they name users and may hold tokens.
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


def installed_torch_dir() -> Path | None:
    """Directory of the installed torch, found without importing it."""
    spec = util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


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


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that can be used on a machine, or not.

    Args:
        detail: The proof (a version, a reading), or why not and what to do.
    """

    name: str
    works: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Host:
    """One machine; by default the one this process is on.

    Args:
        environ: Of the programs that are started here.
        open_driver: Gives the driver of its GPUs, or raises `GpuDriverError`.
        root: Of the file system, for what the kernel and container runtimes tell.
        torch_dir: Directory of the torch package; `None`: there is none.
        disk_usage: Total, used and free bytes of the file system that holds a directory.
        calibration_dir: Where calibrations of its sensors lie.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    open_driver: Callable[[], GpuDriver] = open_nvml
    root: Path = Path("/")
    clock: Clock = field(default_factory=SystemClock)
    torch_dir: Callable[[], Path | None] = installed_torch_dir
    packages: Callable[[], list[str]] = installed_packages
    is_writable: Callable[[Path], bool] = lambda directory: os.access(directory, os.W_OK | os.X_OK)
    disk_usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage
    calibration_dir: Path = field(default_factory=lambda: Path(platformdirs.user_data_dir(APP_NAME)) / "calibration")

    @property
    def powercap_root(self) -> Path:
        """Root of the kernel's power-capping tree, which holds RAPL."""
        return self.root / "sys/class/powercap"

    def visible_gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that a program started here would see, in its order.

        Raises:
            GpuDriverError: There is no driver, or it could not list them.
        """
        return visible_gpus(self.environ, self.open_driver())
