"""What around a study may move its figures: memory somebody left on a GPU, a machine that is not the same any more."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from llenergymeasure.domain.environment import EnvironmentSnapshot

if TYPE_CHECKING:
    from llenergymeasure.core.gpu.driver import GpuDriver

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


def leftover_gpu_memory(open_nvml: Callable[[], GpuDriver] | None = None) -> tuple[str, ...]:
    """GPUs with memory in use while no experiment runs, one sentence each.

    Args:
        open_nvml: Gives the machine's NVML.
    """
    from llenergymeasure.core.gpu import driver
    from llenergymeasure.core.gpu.nvml import open_nvml as machines_nvml
    from llenergymeasure.core.gpu.visible import visible_gpus

    try:
        nvml = (open_nvml or machines_nvml)()
        boards = {gpu.board_uuid: gpu for gpu in visible_gpus(os.environ, nvml)}
        found = []
        for uuid, gpu in boards.items():
            handle = nvml.handle_by_uuid(uuid)
            used_mb = nvml.memory_used_mb(handle)
            if used_mb > LEFTOVER_MB:
                pids = ", ".join(map(str, nvml.compute_pids(handle))) or "unknown"
                found.append(
                    f"GPU {gpu.index} ({gpu.name}) has {used_mb / 1000:.1f} GB in use before the experiment "
                    f"(processes: {pids}). Energy and speed may be off; stop whoever holds it."
                )
        return tuple(found)
    except driver.DriverMissingError:
        return ()
    except driver.GpuDriverError as error:
        _log.warning("Could not look for memory left on the GPUs: %s", error)
        return ()


def environment_changes(before: EnvironmentSnapshot, now: EnvironmentSnapshot) -> tuple[str, ...]:
    """What differs between two environments that may move a figure, as `name: old -> new`.

    Args:
        before: Environment of the study's earlier results.
        now: Environment of the result at hand.
    """
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
