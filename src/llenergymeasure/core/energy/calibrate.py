"""Characterise a board's power sensor with a controlled load: `python -m llenergymeasure.core.energy.calibrate`.

The load is switched on and off at random times while the power reading is polled; sensor_response.py tells from that
how often the sensor updates and over how long it averages. The energy counter is watched beside it. The result is
stored per board and driver (boards.py) and makes the stated uncertainties narrower. It takes about a minute per
board, which should do nothing else meanwhile.

It cannot find the gain: the sensor is compared with itself.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol

import typer

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.boards import SensorCalibration, save_calibration
from llenergymeasure.core.energy.counter import measure_counter_periods
from llenergymeasure.core.energy.sampler import GpuReader
from llenergymeasure.core.energy.telemetry import PowerSource
from llenergymeasure.core.gpu.driver import DeviceId, Gpu, GpuDriverError
from llenergymeasure.core.host.host import Host
from llenergymeasure.exceptions import EnergyError, LLEMError

GAIN_NOTE: Final = "The gain cannot be found without an external power meter; its uncertainty stays as configured."

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
        power_source: Which reading `read_power_w` gives.
        read_counter_j: Reads its energy counter; `None`: it has none.
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
        board: Nobody else may use it meanwhile.
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


SHORTEST_UPDATE_S: Final = 0.004
LONGEST_UPDATE_S: Final = 0.3
"""Update periods that are looked for, in seconds."""

CHANGES_USED: Final = 150
"""So many changes of the reading are used to find the update period at first; more only take time."""

IN_STEP: Final = 0.85
"""Length of the mean phase vector from which on changes count as being in step with a period (1: all of them)."""

SHORTEST_WINDOW_S: Final = 0.002
LONGEST_WINDOW_S: Final = 2.0
"""Averaging windows that are looked for, in seconds."""

LONGEST_LATENCY_S: Final = 0.03
"""A load needs up to this long to show after it was switched, in seconds."""

CLEAR_STEP: Final = 10.0
"""A step of the load must be this many times the noise to be used."""

SETTLED_SHARE: Final = 0.97
SETTLED_UPDATES: Final = 3
"""After so many updates that show this share of a step, the rest of the stretch tells nothing about the sensor."""

Read = tuple[float, float]
"""A reading: seconds on the measurement clock, watts."""


class ResponseError(ValueError):
    """The readings do not show what is looked for."""


@dataclass(frozen=True, slots=True)
class Switch:
    """The load was switched on or off at a time in seconds."""

    time_s: float
    on: bool


@dataclass(frozen=True, slots=True)
class Updates:
    """When the sensor publishes: every `period_s`, one of them at `phase_s`, in seconds."""

    period_s: float
    phase_s: float

    def times(self, from_s: float, to_s: float) -> list[float]:
        """Updates between two times."""
        first = math.ceil((from_s - self.phase_s) / self.period_s)
        last = math.floor((to_s - self.phase_s) / self.period_s)
        return [self.phase_s + k * self.period_s for k in range(first, last + 1)]


def find_updates(reads: Sequence[Read]) -> Updates:
    """Period and phase of the sensor's updates.

    The largest period with which the changes of the reading are in step (a periodogram of the change times), refined by
    a straight line through them.

    Args:
        reads: Readings polled much faster than the sensor updates, in order.

    Raises:
        ResponseError: The readings hardly change, or not in step with any period.
    """
    changes = [0.5 * (a[0] + b[0]) for a, b in pairwise(reads) if a[1] != b[1]]
    if len(changes) < 8:
        raise ResponseError(f"the power reading changed only {len(changes)} times; is the board under load?")
    sample = changes[:CHANGES_USED]  # neighbours: every n-th change would be in step with n periods
    origin_s, span_s = sample[0], sample[-1] - sample[0]
    slowest, fastest = 1.0 / LONGEST_UPDATE_S, 1.0 / SHORTEST_UPDATE_S
    step = 1.0 / (8.0 * span_s)
    for i in range(math.ceil((fastest - slowest) / step)):
        frequency = slowest + i * step
        if _in_step(sample, origin_s, frequency) < IN_STEP:
            continue
        best = max((frequency + 0.25 * k * step for k in range(17)), key=lambda f: _in_step(sample, origin_s, f))
        return _refined(changes, origin_s, 1.0 / best)
    raise ResponseError("the power reading does not change at regular times")


def readings_by_update(reads: Sequence[Read], updates: Updates) -> list[Read]:
    """For each update its time and the value that it published."""
    times = [t for t, _ in reads]
    published = []
    for update_s in updates.times(times[0], times[-1] - 0.5 * updates.period_s):
        i = bisect_left(times, update_s + 0.5 * updates.period_s)
        published.append((update_s, reads[i][1]))
    return published


def find_averaging_window(published: Sequence[Read], switches: Sequence[Switch]) -> float:
    """Averaging window in seconds, from how much of each step shows at the updates after it.

    An update `delay` after a step shows `delay / window` of it, and all of it from `window` on. The load's own latency
    is fitted beside it.

    Args:
        switches: When the load was switched, in order; the last one only ends the last stretch.

    Raises:
        ResponseError: No step was clear enough.
    """
    shown = _shown_of_steps(published, switches)
    if len(shown) < 3:
        raise ResponseError("the load makes no clear steps in the power reading")
    coarse = _geometric(SHORTEST_WINDOW_S, LONGEST_WINDOW_S, 80)
    window_s, latency_s = _best_fit(shown, coarse, [0.002 * i for i in range(round(LONGEST_LATENCY_S / 0.002) + 1)])
    fine = [window_s * (0.9 + 0.004 * i) for i in range(51)]
    near = [max(0.0, latency_s + 0.0005 * i) for i in range(-4, 5)]
    return _best_fit(shown, fine, near)[0]


def plateaus(published: Sequence[Read], switches: Sequence[Switch], *, on: bool) -> list[list[float]]:
    """Settled values after each switch to `on`: those of the last third of the stretch."""
    levels = []
    for a, b in pairwise(switches):
        if a.on is on:
            settled_s = b.time_s - (b.time_s - a.time_s) / 3.0
            stretch = published[bisect_left(published, (settled_s,)) : bisect_left(published, (b.time_s,))]
            values = [w for _, w in stretch]
            if values:
                levels.append(values)
    return levels


def noise_w(levels: Sequence[Sequence[float]]) -> float:
    """Standard deviation in watts of readings that should all be the same, pooled over stretches."""
    freedom = sum(len(values) - 1 for values in levels)
    if freedom < 1:
        return 0.0
    squares = sum((w - statistics.fmean(values)) ** 2 for values in levels for w in values)
    return math.sqrt(squares / freedom)


def _in_step(changes: Sequence[float], origin_s: float, frequency: float) -> float:
    turns = 2.0 * math.pi * frequency
    x = math.fsum(math.cos(turns * (t - origin_s)) for t in changes)
    y = math.fsum(math.sin(turns * (t - origin_s)) for t in changes)
    return math.hypot(x, y) / len(changes)


def _refined(changes: Sequence[float], origin_s: float, period_s: float) -> Updates:
    """Least squares of the change times over their number, for which the period must be nearly right."""
    numbers = [round((t - origin_s) / period_s) for t in changes]
    period_s, phase_s = statistics.linear_regression(numbers, changes)
    return Updates(period_s, phase_s)


def _shown_of_steps(published: Sequence[Read], switches: Sequence[Switch]) -> list[Read]:
    """(delay after a switch in seconds, share of the step that shows) of every update that can tell."""
    noise = noise_w([*plateaus(published, switches, on=True), *plateaus(published, switches, on=False)])
    shown = []
    for before, switch, after in zip(switches, switches[1:], switches[2:], strict=False):
        old, new = _level(published, before, switch), _level(published, switch, after)
        if old is None or new is None or abs(new - old) < max(1.0, CLEAR_STEP * noise):
            continue
        settled = 0
        for t, w in published[bisect_left(published, (switch.time_s,)) : bisect_left(published, (after.time_s,))]:
            share = (w - old) / (new - old)
            shown.append((t - switch.time_s, share))
            settled += share > SETTLED_SHARE
            if settled == SETTLED_UPDATES:  # all that follow would only say the same again
                break
    return shown


def _level(published: Sequence[Read], start: Switch, end: Switch) -> float | None:
    levels = plateaus(published, (start, end), on=start.on)
    return statistics.median(levels[0]) if levels else None


def _best_fit(shown: Sequence[Read], windows_s: Sequence[float], latencies_s: Sequence[float]) -> tuple[float, float]:
    def misfit(window_s: float, latency_s: float) -> float:
        return math.fsum((share - min(1.0, max(0.0, (delay - latency_s) / window_s))) ** 2 for delay, share in shown)

    return min(((w, d) for w in windows_s for d in latencies_s), key=lambda candidate: misfit(*candidate))


def _geometric(low: float, high: float, count: int) -> list[float]:
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]
