"""What NVML tells about a board apart from its load: identity, size, limits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llenergymeasure.core.gpu.driver import GpuDriver, GpuDriverError, GpuHandle, NotSupportedError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU or MIG instance; `None` where the board does not tell.

    Args:
        uuid: `GPU-…`, or `MIG-…` for a MIG instance.
        name: Marketing name of the board.
        memory_total_mb: Device memory in MB (10^6 bytes).
        memory_free_mb: Of it, what nobody uses now.
        compute_capability: CUDA compute capability, e.g. `9.0`.
        pcie_generation: PCIe generation of the current link.
        mig_enabled: Whether the board is cut into MIG instances.
        persistence_mode: Whether the driver stays loaded while nobody uses the board.
        power_limit_w: Enforced power limit in watts.
        default_power_limit_w: Factory power limit in watts.
        max_sm_clock_mhz: Highest streaming-multiprocessor clock in MHz.
        temperature_c: Temperature in degrees Celsius.
        fan_speed_pct: Fan speed in per cent of its maximum.
    """

    uuid: str
    name: str
    memory_total_mb: float | None
    memory_free_mb: float | None
    compute_capability: str | None
    pcie_generation: int | None
    mig_enabled: bool | None
    persistence_mode: bool | None
    power_limit_w: float | None
    default_power_limit_w: float | None
    max_sm_clock_mhz: float | None
    temperature_c: float | None
    fan_speed_pct: float | None


def read_gpu_facts(nvml: GpuDriver, uuid: str, board_uuid: str) -> GpuFacts:
    """Read what a GPU tells about itself; what it does not tell is `None`, with the reason in the log.

    Args:
        nvml: The machine's NVML.
        uuid: The device: a board or a MIG instance. Its memory is its own.
        board_uuid: The board it is on, which has the sensors and limits.

    Raises:
        GpuDriverError: There is no such device, or it has no name.
    """
    device, board = nvml.handle_by_uuid(uuid), nvml.handle_by_uuid(board_uuid)

    def ask(question: Callable[[GpuHandle], T], handle: GpuHandle = board) -> T | None:
        try:
            return question(handle)
        except NotSupportedError as error:
            logger.debug("%s: %s", board_uuid, error)
        except GpuDriverError as error:
            logger.warning("%s: %s", board_uuid, error)
        return None

    return GpuFacts(
        uuid=uuid,
        name=nvml.name(board),
        memory_total_mb=ask(nvml.memory_total_mb, device),
        memory_free_mb=ask(nvml.memory_free_mb, device),
        compute_capability=ask(nvml.compute_capability),
        pcie_generation=ask(nvml.pcie_generation),
        mig_enabled=ask(nvml.mig_enabled),
        persistence_mode=ask(nvml.persistence_mode),
        power_limit_w=ask(nvml.power_limit_w),
        default_power_limit_w=ask(nvml.default_power_limit_w),
        max_sm_clock_mhz=ask(nvml.max_sm_clock_mhz),
        temperature_c=ask(nvml.temperature_c),
        fan_speed_pct=ask(nvml.fan_speed_pct),
    )


def free_memory_mb(gpus: Sequence[GpuFacts], *, one_copy_each: bool) -> float | None:
    """Memory that one copy of a model can use, in MB.

    Args:
        gpus: The GPUs it is for.
        one_copy_each: Each GPU gets a whole copy, rather than all of them one copy together.

    Returns:
        `None` where a GPU does not tell, or there is none.
    """
    known = [gpu.memory_free_mb for gpu in gpus if gpu.memory_free_mb is not None]
    if not known or len(known) < len(gpus):
        return None
    return min(known) if one_copy_each else sum(known)
