"""The environment of a study: whether it can hold all of it, and what of it may move a figure while it runs."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from llenergymeasure.config.models import StudyConfig
from llenergymeasure.config.user_config import UserConfig, get_user_config_path
from llenergymeasure.constants import VERSION
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.exceptions import PreFlightError

if TYPE_CHECKING:
    from llenergymeasure.core.gpu.nvml import Nvml


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
    here = [backend for backend in backends if getattr(machine.runners, backend) == "local"]
    if len(here) < 2:
        return
    settings = "\n".join(f"      {backend}: docker:llenergymeasure/{backend}:{VERSION}-cuda12" for backend in backends)
    raise PreFlightError(
        [
            f"the study uses several backends ({', '.join(backends)}), and {', '.join(here)} would run in this Python "
            f"environment, where they cannot live side by side. Run them in Docker: put this into "
            f"{get_user_config_path()}\n    runners:\n{settings}\n    or make one study per backend."
        ]
    )


def leftover_gpu_memory(open_nvml: Callable[[], Nvml] | None = None) -> tuple[str, ...]:
    """GPUs with memory in use while no experiment runs, one sentence each.

    Args:
        open_nvml: Gives the driver; `None`: this machine's own.
    """
    from llenergymeasure.core.gpu import nvml as nvml_module
    from llenergymeasure.core.gpu.visible import visible_gpus

    try:
        nvml = (open_nvml or nvml_module.open_nvml)()
        boards = {gpu.board_uuid: gpu for gpu in visible_gpus(os.environ, nvml)}
        found = []
        for uuid, gpu in boards.items():
            handle = nvml.handle_by_uuid(uuid)
            used_mb = nvml.memory_used_mb(handle)
            if used_mb > LEFTOVER_MB:
                pids = ", ".join(map(str, nvml.compute_pids(handle))) or "unknown"
                found.append(
                    f"GPU {gpu.nvml_index} ({gpu.name}) has {used_mb / 1000:.1f} GB in use before the experiment "
                    f"(processes: {pids}). Energy and speed may be off; stop whoever holds it."
                )
        return tuple(found)
    except nvml_module.NvmlLibraryMissingError:
        return ()
    except nvml_module.NvmlError as error:
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
