"""What somebody has left on the GPUs of this machine."""

from __future__ import annotations

import logging
from typing import Final

from llenergymeasure.core.gpu.driver import DriverMissingError, GpuDriverError
from llenergymeasure.core.host.host import Host

LEFTOVER_MB: Final = 1000.0
"""Memory in use on a GPU that nobody uses above which it is reported, in MB; drivers keep some hundreds themselves."""

_log = logging.getLogger(__name__)


def leftover_gpu_memory(host: Host | None = None) -> tuple[str, ...]:
    """GPUs with memory in use while no experiment runs, one sentence each."""
    found = []
    try:
        boards = {gpu.board_uuid: gpu for gpu in (host or Host()).visible_gpus()}
        for gpu in boards.values():
            used_mb = gpu.driver.memory_used_mb(gpu.handle)
            if used_mb > LEFTOVER_MB:
                pids = ", ".join(map(str, gpu.driver.compute_pids(gpu.handle))) or "unknown"
                found.append(
                    f"GPU {gpu.index} ({gpu.name}) has {used_mb / 1000:.1f} GB in use before the experiment "
                    f"(processes: {pids}). Energy and speed may be off; stop whoever holds it."
                )
    except DriverMissingError:
        return ()
    except GpuDriverError as error:
        _log.warning("Could not look for memory left on the GPUs: %s", error)
        return ()
    return tuple(found)
