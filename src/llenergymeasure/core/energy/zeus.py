"""Zeus as the meter: `ZeusMonitor` windows own the joules, this package's sampler beside them gives the power trace.

Zeus knows GPUs by their place in `CUDA_VISIBLE_DEVICES`, which it cannot read when it holds UUIDs, and takes to be in
NVML's order. It is therefore set up while that variable names every board by its NVML index, so that its indices are
NVML's; whether it then looks at the right boards is checked by UUID. Only its counter path is used: its integral of
power samples drops equal neighbours.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.boards import Board, board_warnings, find_boards
from llenergymeasure.core.energy.counter import CounterRead
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.gpu_sampling import (
    describe_sensor,
    power_sampling,
    sampler_warnings,
    start_sampler,
    with_notes,
)
from llenergymeasure.core.energy.gpu_window import BoardRecord, GpuWindow, RecordedWindow
from llenergymeasure.core.energy.optional import import_meter_package, require_meter_package
from llenergymeasure.core.energy.proof import is_proven
from llenergymeasure.core.energy.sampler import PowerSampler
from llenergymeasure.core.energy.telemetry import SampledTelemetry
from llenergymeasure.core.energy.types import DeviceId, EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.core.host.devices import VISIBLE_DEVICES
from llenergymeasure.core.host.nvml import Nvml
from llenergymeasure.domain.warnings import MeasurementWarning
from llenergymeasure.exceptions import EnergyError

PROOF_S = 0.25
"""Length of the trial window that proves availability: two updates of the energy counter."""


@dataclass(frozen=True, slots=True)
class _OpenWindow:
    """What it takes to close a window."""

    key: str
    sampler: PowerSampler
    opened_s: float
    warnings: tuple[MeasurementWarning, ...]


class ZeusBackend:
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

    name = "zeus"

    def __init__(
        self,
        devices: Sequence[DeviceId],
        nvml: Nvml,
        clock: Clock,
        options: MeterOptions,
        environ: MutableMapping[str, str] = os.environ,
    ) -> None:
        require_meter_package("zeus", extra="zeus")
        self._nvml = nvml
        self._clock = clock
        self._options = options
        self._boards = find_boards(devices, nvml)
        self._check_boards()
        self._monitor = _monitor([board.index for board in self._boards], len(nvml.device_handles()), environ)
        self._check_identity()
        self._keys = (f"llenergymeasure {number}" for number in itertools.count(1))

    def prove(self) -> str:
        """Measure a quarter of a second.

        Raises:
            EnergyError: Zeus failed, or gave no joules for a board.
        """
        handle = self.start_tracking()
        self._clock.sleep(PROOF_S)
        trial = self.stop_tracking(handle)
        if trial.telemetry is not None:
            trial.telemetry.close()
        if trial.counter_j is None or trial.total_j is None:
            raise EnergyError("; ".join(note.message for note in trial.notes) or "Zeus gave no joules")
        watts = trial.counter_j / trial.duration_sec
        return f"GPU {', '.join(str(board.index) for board in self._boards)}: {watts:.1f} W now"

    def is_available(self) -> bool:
        """Whether a short trial window gives joules for every board."""
        return is_proven(self)

    def start_tracking(self) -> TrackingHandle:
        """Start sampling and open a window of Zeus.

        Raises:
            EnergyError: Zeus or the sampler failed.
        """
        warnings = tuple(board_warnings(self._boards, self._nvml))
        sampler = start_sampler(self._boards, self._nvml, self._clock, self._options)
        key = next(self._keys)
        try:
            opened_s = self._clock.now()
            with _zeus_errors("open a window"):
                self._monitor.begin_window(key, sync_execution=False)  # the harness has synchronised
        except BaseException:
            sampler.abort()
            raise
        return TrackingHandle(self._clock.now(), _OpenWindow(key, sampler, opened_s, warnings))

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close the window. Where Zeus fails to, the power samples stand in and a note says so."""
        end_s = self._clock.now()
        window = handle.state
        if not isinstance(window, _OpenWindow):
            raise EnergyError("this window was not opened by the Zeus meter")
        joules: dict[int, float] = {}
        problem: str | None = None
        try:
            with _zeus_errors("close a window"):
                joules = dict(self._monitor.end_window(window.key, sync_execution=False).gpu_energy)
        except EnergyError as error:
            problem = str(error)
        except BaseException:
            window.sampler.abort()
            raise
        closed_s = self._clock.now()
        telemetry = window.sampler.stop(end_s)
        record = GpuWindow(
            start_s=handle.start_s,
            end_s=end_s,
            boards=tuple(
                self._record(board, joules.get(board.index), problem, window.opened_s, closed_s, telemetry)
                for board in self._boards
            ),
            sampling_interval_s=self._options.poll_interval_ms / 1000,
            gain_uncertainty_pct=self._options.power_gain_uncertainty_pct,
            meter=self.name,
        )
        warnings = dict.fromkeys((*window.warnings, *board_warnings(self._boards, self._nvml)))
        energy = gpu_measurement(RecordedWindow(record, telemetry))
        return with_notes(energy, (*warnings, *sampler_warnings(telemetry)))

    def _record(
        self,
        board: Board,
        energy_j: float | None,
        problem: str | None,
        opened_s: float,
        closed_s: float,
        telemetry: SampledTelemetry,
    ) -> BoardRecord:
        """Zeus tells only differences, so the counter is taken to have stood at 0 when the window opened."""
        before: tuple[CounterRead, ...] = ()
        after: tuple[CounterRead, ...] = ()
        if energy_j is not None:
            before = (CounterRead(opened_s, opened_s, 0.0),)
            after = (CounterRead(closed_s, closed_s, energy_j),)
        sampling = power_sampling(board, telemetry)
        return BoardRecord(
            device=board.device,
            board=board.uuid,
            has_counter=True,
            before=before,
            after=after,
            counter_problem=problem,
            includes_module=board.includes_module,
            power_limit_w=board.power_limit_w,
            sensor=describe_sensor(sampling, None),
            sampling=sampling,
        )

    def _check_boards(self) -> None:
        for board in self._boards:
            if board.is_mig:
                raise EnergyError(f"Zeus does not measure MIG instances ({board.device}); use energy.backend: nvml")
            if not board.has_counter:
                raise EnergyError(
                    f"GPU {board.index} has no energy counter, and without one Zeus gives 0 J under constant power; "
                    "use energy.backend: nvml"
                )

    def _check_identity(self) -> None:
        """Zeus keeps its list of GPUs for the life of the process; it may be from before this meter."""
        seen = self._monitor.gpus.gpus
        for board in self._boards:
            if board.index >= len(seen) or self._nvml.uuid(seen[board.index].handle) != board.uuid:
                raise EnergyError(
                    "Zeus was set up earlier in this process for other GPUs and cannot be set up again; start a new "
                    "process, or use energy.backend: nvml"
                )


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
    except EnergyError:
        raise
    except Exception as error:
        raise EnergyError(f"Zeus could not {doing}: {type(error).__name__}: {error}") from error
