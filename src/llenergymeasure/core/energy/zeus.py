"""Zeus as the meter of GPUs: `ZeusMonitor` windows, by its counter path.

Zeus knows GPUs by their place in `CUDA_VISIBLE_DEVICES`, which it cannot read when it holds UUIDs, and takes to be in
NVML's order. It is therefore set up while that variable names every board by its NVML index, so that its indices are
NVML's; whether it then looks at the right boards is checked by UUID. Its other path, the integral of power samples,
drops equal neighbours and gives 0 J under constant power; boards without a counter are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.external import ExternalGpuBackend, SourceReading, require_counters
from llenergymeasure.core.energy.optional import import_meter_package, require_meter_package
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.gpu.driver import DeviceId, Gpu, GpuDriver, find_gpus
from llenergymeasure.core.gpu.visible import VISIBLE_DEVICES
from llenergymeasure.exceptions import EnergyError


def zeus_backend(
    devices: Sequence[DeviceId],
    nvml: GpuDriver,
    clock: Clock,
    options: MeterOptions,
    environ: MutableMapping[str, str] = os.environ,
) -> ExternalGpuBackend:
    """The meter of GPUs, by Zeus.

    Args:
        devices: UUIDs of the GPUs that the run uses, and of no others.
        nvml: The machine's NVML.
        clock: The measurement clock.
        options: How meters work on this machine.
        environ: This process's environment; Zeus reads it while it is set up.

    Raises:
        EnergyError: Zeus is missing or does not work for these devices.
    """
    require_meter_package("zeus", extra="zeus")
    gpus = find_gpus(devices, nvml)
    require_counters(gpus, "zeus")
    source = ZeusSource(gpus, nvml, environ)
    return ExternalGpuBackend(source, gpus, clock, options)


class ZeusSource:
    """Windows of one `ZeusMonitor`.

    Args:
        boards: The boards to measure.
        nvml: The machine's NVML.
        environ: See `zeus_backend`.

    Raises:
        EnergyError: Zeus is missing or cannot be set up for these boards.
    """

    name = "zeus"

    def __init__(self, gpus: Sequence[Gpu], nvml: GpuDriver, environ: MutableMapping[str, str]) -> None:
        self._monitor = _monitor([gpu.index for gpu in gpus], len(nvml.device_handles()), environ)
        seen = self._monitor.gpus.gpus
        for gpu in gpus:
            if gpu.index >= len(seen) or nvml.uuid(seen[gpu.index].handle) != gpu.board_uuid:
                raise EnergyError(  # Zeus keeps its list of GPUs for the life of the process
                    "Zeus was set up earlier in this process for other GPUs and cannot be set up again; start a new "
                    "process, or use energy.backend: nvml"
                )

    def begin(self, key: str) -> None:
        """Open a window of Zeus; the harness has synchronised.

        Raises:
            EnergyError: Zeus failed.
        """
        with _zeus_errors("open a window"):
            self._monitor.begin_window(key, sync_execution=False)

    def end(self, key: str) -> SourceReading:
        """Close it.

        Raises:
            EnergyError: Zeus failed.
        """
        with _zeus_errors("close a window"):
            return SourceReading(dict(self._monitor.end_window(key, sync_execution=False).gpu_energy))


def _monitor(indices: Sequence[int], board_count: int, environ: MutableMapping[str, str]) -> Any:
    zeus_monitor = import_meter_package("zeus.monitor", extra="zeus")
    with _zeus_errors("start"), _all_boards_visible(board_count, environ):
        monitor = zeus_monitor.ZeusMonitor(gpu_indices=list(indices), cpu_indices=[])
    if monitor.power_monitor is not None:
        raise EnergyError("Zeus would integrate power samples here instead of using the energy counter")
    return monitor


@contextmanager
def _all_boards_visible(count: int, environ: MutableMapping[str, str]) -> Iterator[None]:
    """Name every board by its NVML index in `CUDA_VISIBLE_DEVICES` for the length of a `with` block."""
    before = environ.get(VISIBLE_DEVICES)
    environ[VISIBLE_DEVICES] = ",".join(map(str, range(count)))
    try:
        yield
    finally:
        if before is None:
            del environ[VISIBLE_DEVICES]
        else:
            environ[VISIBLE_DEVICES] = before


@contextmanager
def _zeus_errors(doing: str) -> Iterator[None]:
    """Zeus raises errors of several families; a caller gets one kind."""
    try:
        yield
    except Exception as error:
        raise EnergyError(f"Zeus could not {doing}: {type(error).__name__}: {error}") from error
