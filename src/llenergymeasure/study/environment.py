"""The environment of a study: whether it can hold all of it, and what of it may move a figure while it runs."""

from __future__ import annotations

import logging
import re
from typing import Final

from llenergymeasure.config.models import StudyConfig
from llenergymeasure.config.user_config import UserConfig, get_user_config_path
from llenergymeasure.constants import VERSION
from llenergymeasure.core.gpu.driver import DriverMissingError, GpuDriverError
from llenergymeasure.core.host.host import Host
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.exceptions import PreFlightError

LEFTOVER_MB: Final = 1000.0
"""Memory in use on a GPU that nobody uses above which it is reported, in MB; drivers keep some hundreds themselves."""

WATCHED_PACKAGES: Final = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "flash-attn",
    "vllm",
    "tensorrt-llm",
    "tensorrt",
    "triton",
)
"""Packages whose version changes what is measured."""

_log = logging.getLogger(__name__)


def check_backends(study: StudyConfig, machine: UserConfig) -> None:
    """Refuse several backends in one Python environment: their engines need different releases of the same packages.

    Raises:
        PreFlightError: More than one backend would run here; shows the settings that mend it.
    """
    backends = list(dict.fromkeys(config.backend for config in study.experiments))
    here = [backend for backend in backends if machine.runners.of(backend) == "local"]
    if len(here) < 2:
        return
    settings = "\n".join(f"      {backend}: docker:llenergymeasure/{backend}:{VERSION}-cuda12" for backend in backends)
    raise PreFlightError(
        [
            f"the study uses several backends ({', '.join(backends)}), and {', '.join(here)} would run in this Python "
            f"environment, where they cannot live side by side. Make one study per backend. Once a release has the "
            f"Docker runner, this in {get_user_config_path()} will keep them apart:\n    runners:\n{settings}"
        ]
    )


def leftover_gpu_memory(host: Host | None = None) -> tuple[str, ...]:
    """GPUs with memory in use while no experiment runs, one sentence each."""
    try:
        boards = {gpu.board_uuid: gpu for gpu in (host or Host()).visible_gpus()}
        found = []
        for gpu in boards.values():
            used_mb = gpu.driver.memory_used_mb(gpu.handle)
            if used_mb > LEFTOVER_MB:
                pids = ", ".join(map(str, gpu.driver.compute_pids(gpu.handle))) or "unknown"
                found.append(
                    f"GPU {gpu.index} ({gpu.name}) has {used_mb / 1000:.1f} GB in use before the experiment "
                    f"(processes: {pids}). Energy and speed may be off; stop whoever holds it."
                )
        return tuple(found)
    except DriverMissingError:
        return ()
    except GpuDriverError as error:
        _log.warning("Could not look for memory left on the GPUs: %s", error)
        return ()


def environment_changes(before: EnvironmentSnapshot, now: EnvironmentSnapshot) -> tuple[str, ...]:
    """What differs between two environments that may move a figure, as `name: old -> new`."""
    packages_before, packages_now = _packages(before), _packages(now)
    pairs: list[tuple[str, object, object]] = [
        ("GPUs", before.gpu_names, now.gpu_names),
        ("GPU UUIDs", before.gpu_uuids, now.gpu_uuids),
        ("GPU power limits (W)", before.gpu_power_limit_w, now.gpu_power_limit_w),
        ("NVIDIA driver", before.cuda_driver_version, now.cuda_driver_version),
        ("CUDA", before.cuda_version, now.cuda_version),
        ("CPU", before.cpu and before.cpu.model, now.cpu and now.cpu.model),
        ("platform", before.platform, now.platform),
        ("Python", before.python_version, now.python_version),
        ("llenergymeasure", before.tool_version, now.tool_version),
        *((name, packages_before.get(name), packages_now.get(name)) for name in WATCHED_PACKAGES),
    ]
    return tuple(f"{name}: {_shown(old)} -> {_shown(new)}" for name, old, new in pairs if old != new)


def _packages(environment: EnvironmentSnapshot) -> dict[str, str]:
    """Versions by normalised name (PEP 503)."""
    pairs = (line.partition("==") for line in environment.pip_freeze)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, found, version in pairs if found}


def _shown(value: object) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
