"""Characterise a board's power sensor with a controlled load: `python -m llenergymeasure.core.energy.calibrate`.

The load is switched on and off at random times while the power reading is polled; sensor_response.py tells from that
how often the sensor updates and over how long it averages. The energy counter is watched beside it. The result is
stored per board and driver (calibration.py) and makes the stated uncertainties narrower. It takes about a minute per
board, which should do nothing else meanwhile.

It cannot find the gain: the sensor is compared with itself.
"""

from __future__ import annotations

import random
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import typer

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.calibration import (
    GAIN_NOTE,
    SensorCalibration,
    save_calibration,
)
from llenergymeasure.core.energy.counter import measure_counter_periods
from llenergymeasure.core.energy.gpu_reader import GpuReader
from llenergymeasure.core.energy.sensor_response import (
    Read,
    ResponseError,
    Switch,
    find_averaging_window,
    find_updates,
    noise_w,
    plateaus,
    readings_by_update,
)
from llenergymeasure.core.energy.types import PowerSource
from llenergymeasure.core.gpu.driver import DeviceId, Gpu, GpuDriverError
from llenergymeasure.core.host.host import Host
from llenergymeasure.exceptions import EnergyError, LLEMError

POLL_S: Final = 0.001
"""Pause between two readings of power, in seconds."""

LONG_STRETCHES: Final = 6
LONG_STRETCH_S: Final = 3.0
"""At first so many stretches with and without the load, in seconds: an average over one second settles in them."""

SHORT_STRETCHES: Final = 100
SHORT_STRETCH_S: Final = 0.4
"""Then so many short ones, for sensors that settle within half of one: only updates soon after a switch tell a short
averaging window, and few updates are."""

STRETCH_SPREAD: Final = 0.25
"""A stretch is longer by a random share up to this, so that switches meet all phases of the sensor."""

COUNTER_STEPS: Final = 25
COUNTER_WATCH_S: Final = 5.0
"""So many steps of the energy counter are watched, for at most so many seconds."""


class Load(Protocol):
    """Something that makes a board draw power, and stops."""

    def start(self) -> None:
        """Draw power from now on; returns once it does."""

    def stop(self) -> None:
        """Stop drawing power; returns once it has stopped."""


@dataclass(frozen=True, slots=True)
class CalibratedBoard:
    """A board as calibration needs it.

    Args:
        uuid: Which board.
        driver_version: The machine's driver.
        power_source: Which reading `read_power_w` gives.
        read_power_w: Reads its power in watts.
        read_counter_j: Reads its energy counter in joules; `None`: it has none.
    """

    uuid: DeviceId
    driver_version: str
    power_source: PowerSource
    read_power_w: Callable[[], float]
    read_counter_j: Callable[[], float] | None


def calibrate(
    board: CalibratedBoard,
    load: Load,
    clock: Clock,
    *,
    draw: random.Random | None = None,
    long_stretches: int = LONG_STRETCHES,
    short_stretches: int = SHORT_STRETCHES,
) -> SensorCalibration:
    """Find out how a board's sensors behave in time.

    Args:
        board: The board; nobody else may use it meanwhile.
        load: A steady load on it.
        clock: The measurement clock.
        draw: Source of the random lengths.
        long_stretches: Stretches of `LONG_STRETCH_S` with and without the load.
        short_stretches: Stretches of `SHORT_STRETCH_S`, if the sensor is quick enough for them.

    Raises:
        EnergyError: The sensor's readings do not show what is needed.
    """
    draw = draw or random.Random()
    try:
        reads, switches = _record(board, load, clock, _stretches(draw, long_stretches, LONG_STRETCH_S))
        updates = find_updates(reads)
        published = readings_by_update(reads, updates)
        window_s = find_averaging_window(published, switches)
        if window_s < 0.5 * SHORT_STRETCH_S:
            reads, quick = _record(board, load, clock, _stretches(draw, short_stretches, SHORT_STRETCH_S))
            window_s = find_averaging_window(readings_by_update(reads, find_updates(reads)), quick)
    except ResponseError as error:
        raise EnergyError(f"{board.uuid} cannot be calibrated: {error}") from error
    idle, busy = plateaus(published, switches, on=False), plateaus(published, switches, on=True)
    counters = {board.uuid: board.read_counter_j} if board.read_counter_j else {}
    period = measure_counter_periods(counters, clock, COUNTER_WATCH_S, wanted_steps=COUNTER_STEPS).get(board.uuid)
    return SensorCalibration(
        uuid=board.uuid,
        driver_version=board.driver_version,
        taken_at=clock.wall().isoformat(timespec="seconds"),
        power_source=board.power_source,
        update_s=updates.period_s,
        averaging_window_s=window_s,
        noise_w=noise_w([*idle, *busy]),
        idle_power_w=statistics.median(w for values in idle for w in values),
        load_power_w=statistics.median(w for values in busy for w in values),
        counter_period_s=period.period_s if period else None,
        counter_tolerance_s=period.tolerance_s if period else None,
    )


def _stretches(draw: random.Random, count: int, length_s: float) -> list[float]:
    return [length_s * (1.0 + draw.uniform(0.0, STRETCH_SPREAD)) for _ in range(count)]


def _record(
    board: CalibratedBoard, load: Load, clock: Clock, stretches_s: Sequence[float]
) -> tuple[list[Read], list[Switch]]:
    """Poll the power reading over stretches without and with the load, in turn."""
    reads: list[Read] = []
    switches: list[Switch] = []
    try:
        for number, stretch_s in enumerate(stretches_s):
            on = number % 2 == 1
            if on:
                load.start()
            elif number > 0:
                load.stop()
            switches.append(Switch(clock.now(), on))
            _poll(board, clock, clock.now() + stretch_s, reads)
    finally:
        load.stop()
    switches.append(Switch(clock.now(), False))
    return reads, switches


def _poll(board: CalibratedBoard, clock: Clock, until_s: float, reads: list[Read]) -> None:
    while (asked_s := clock.now()) < until_s:
        power_w = board.read_power_w()
        reads.append((0.5 * (asked_s + clock.now()), power_w))
        clock.sleep(POLL_S)


class MatmulLoad:
    """Matrix products on a CUDA device in a thread of its own.

    Args:
        cuda_index: The device as CUDA numbers it.

    Raises:
        EnergyError: PyTorch is missing or sees no such device.
    """

    def __init__(self, cuda_index: int) -> None:
        try:
            import torch
        except ImportError as error:
            raise EnergyError(
                'the load needs PyTorch. Install it with: pip install "llenergymeasure[pytorch]"'
            ) from error
        if cuda_index >= torch.cuda.device_count():
            raise EnergyError(f"PyTorch {torch.__version__} sees no CUDA device {cuda_index}")
        self._torch = torch
        self._matrix = torch.randn(4096, 4096, device=f"cuda:{cuda_index}", dtype=torch.float16)
        self._stop = threading.Event()
        self._running = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Draw power from now on; returns once the first product is done.

        Raises:
            EnergyError: The device refused.
        """
        self._stop.clear()
        self._running.clear()
        self._thread = threading.Thread(target=self._work, name="llem-calibration-load", daemon=True)
        self._thread.start()
        self._running.wait()
        if self._error is not None:
            raise EnergyError(f"the load does not run: {self._error}") from self._error

    def stop(self) -> None:
        """Stop, and wait for the last product."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._torch.matmul(self._matrix, self._matrix)
                self._torch.cuda.synchronize(self._matrix.device)  # so that no queue outlives `stop`
                self._running.set()
        except RuntimeError as error:  # out of memory, a lost device: told by `start`, in the thread that called it
            self._error = error
        finally:
            self._running.set()


def open_board(gpu: Gpu, clock: Clock) -> CalibratedBoard:
    """A board of this machine, with the power reading that measurements use.

    Raises:
        EnergyError: It has no power reading.
    """
    reader = GpuReader(gpu, clock)
    source = reader.read().power_source
    if source is None:
        raise EnergyError(f"{gpu.uuid} has no power reading: {'; '.join(reader.problems())}")

    def read_power_w() -> float:
        if source == "power_usage":
            return gpu.driver.power_usage_w(gpu.handle)
        return gpu.driver.power_instant(gpu.handle).power_w

    return CalibratedBoard(
        uuid=gpu.uuid,
        driver_version=gpu.driver.driver_version(),
        power_source=source,
        read_power_w=read_power_w,
        read_counter_j=partial(gpu.driver.total_energy_j, gpu.handle) if _counts(gpu) else None,
    )


def _counts(gpu: Gpu) -> bool:
    try:
        gpu.driver.total_energy_j(gpu.handle)
    except GpuDriverError:
        return False
    return True


def describe(found: SensorCalibration) -> str:
    """A calibration for people."""
    counter = "no steps seen"
    if found.counter_period_s is not None and found.counter_tolerance_s is not None:
        counter = f"{1000 * found.counter_period_s:.1f} ± {1000 * found.counter_tolerance_s:.1f} ms"
    return "\n".join(
        [
            f"{found.uuid} (driver {found.driver_version}), by {found.power_source}",
            f"  update period      {1000 * found.update_s:.1f} ms",
            f"  averaging window   {1000 * found.averaging_window_s:.1f} ms",
            f"  sees               {100 * found.sampled_share:.0f} % of the time",
            f"  counter period     {counter}",
            f"  noise              {found.noise_w:.2f} W",
            f"  idle / load        {found.idle_power_w:.1f} W / {found.load_power_w:.1f} W",
            f"  {GAIN_NOTE}",
        ]
    )


def main(directory: Path | None = None) -> None:
    """Calibrate every GPU that CUDA shows here, one after the other."""
    host = Host()
    gpus = [gpu for gpu in host.visible_gpus() if not gpu.is_mig]
    if not gpus:
        raise EnergyError("no whole GPU is visible here; see CUDA_VISIBLE_DEVICES")
    for gpu in gpus:
        found = calibrate(open_board(gpu, host.clock), MatmulLoad(gpu.cuda_index or 0), host.clock)
        path = save_calibration(found, directory or host.calibration_dir)
        typer.echo(f"{describe(found)}\n  stored in {path}")


if __name__ == "__main__":
    try:
        main()
    except LLEMError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
