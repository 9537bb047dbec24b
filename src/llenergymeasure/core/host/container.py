"""Whether this process runs in a container, and in whose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from llenergymeasure.domain.environment import ContainerEnvironment

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
