"""Characterise a board's power sensor with a controlled load: `python -m llenergymeasure.core.energy.calibrate`.

    power      ______________|~~~~~~~~~~~~~~~~|_________      a load, switched at random and known times
    readings   ________________|~~~~~~~~~~~~~~~~~|______      at every update, the mean of the last averaging window
    updates        :     :     :     :     :     :

The power reading is polled densely meanwhile, by the method of arXiv 2312.02741: the moments at which readings change
give the update period, and how much of a step shows at the first updates after it gives the averaging window. The
energy counter is watched beside it, at last together with the readings, to see whether it adds those up
(counter_kind.py). The result is stored per board and driver (boards.py) and makes the stated uncertainties narrower. It
takes a minute and a half per board, which should do nothing else meanwhile.

It cannot find the gain: the sensor is compared with itself.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import typer

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.boards import SensorCalibration, save_calibration
from llenergymeasure.core.energy.counter_kind import counter_follows_sensor
from llenergymeasure.core.energy.matmul_load import MatmulLoad
from llenergymeasure.core.energy.sampler import GpuReader
from llenergymeasure.core.energy.strategies import measure_counter_periods
from llenergymeasure.core.energy.telemetry import PowerSource
from llenergymeasure.core.energy.types import SensorDescription
from llenergymeasure.core.gpu.driver import Gpu, GpuDriverError
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

COUNTER_STRETCHES: Final = 30
"""At last so many short ones, in which the counter is read together with the power reading."""

STRETCH_SPREAD: Final = 0.25
"""A stretch is longer by a random share up to this, so that switches meet all phases of the sensor."""

COUNTER_STEPS: Final = 25
COUNTER_WATCH_S: Final = 5.0
"""So many steps of the energy counter are watched, for at most so many seconds."""

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


class Load(Protocol):
    """Something that makes a board draw power, and stops."""

    def start(self) -> None:
        """Draw power from now on; returns once it does."""

    def stop(self) -> None:
        """Stop drawing power; returns once it has stopped."""


class Switch(NamedTuple):
    """The load was switched on or off at a time in seconds."""

    time_s: float
    on: bool


class ResponseError(ValueError):
    """The readings do not show what is looked for."""


def calibrate(
    gpu: Gpu,
    load: Load,
    clock: Clock,
    *,
    draw: random.Random | None = None,
    long_stretches: int = LONG_STRETCHES,
    short_stretches: int = SHORT_STRETCHES,
    counter_stretches: int = COUNTER_STRETCHES,
) -> SensorCalibration:
    """Find out how a board's sensors behave in time; nobody else may use it meanwhile.

    Raises:
        EnergyError: It has no power reading, or the readings do not show what is needed.
    """
    draw, source = draw or random.Random(), _power_source(gpu, clock)
    counter, follows, counted = _watched_counter(gpu, clock), None, list[Read]()
    try:
        reads, switches = _record(gpu, source, load, clock, _stretches(draw, long_stretches, LONG_STRETCH_S))
        update_s, phase_s = find_updates(reads)
        published = readings_by_update(reads, update_s, phase_s)
        window_s = find_averaging_window(published, switches)
        if window_s < 0.5 * SHORT_STRETCH_S:
            reads, quick = _record(gpu, source, load, clock, _stretches(draw, short_stretches, SHORT_STRETCH_S))
            window_s = find_averaging_window(readings_by_update(reads, *find_updates(reads)), quick)
        if counter is not None:
            stretches_s = _stretches(draw, counter_stretches, SHORT_STRETCH_S)
            reads, _ = _record(gpu, source, load, clock, stretches_s, counted)
            follows = counter_follows_sensor(readings_by_change(reads, update_s), counted, update_s, window_s)
    except ResponseError as error:
        raise EnergyError(f"{gpu.uuid} cannot be calibrated: {error}") from error
    idle, busy = plateaus(published, switches, on=False), plateaus(published, switches, on=True)
    return SensorCalibration(
        uuid=gpu.uuid,
        driver_version=gpu.driver.driver_version(),
        taken_at=clock.wall().isoformat(timespec="seconds"),
        power_source=source,
        update_s=update_s,
        averaging_window_s=window_s,
        noise_w=noise_w([*idle, *busy]),
        idle_power_w=statistics.median(w for values in idle for w in values),
        load_power_w=statistics.median(w for values in busy for w in values),
        counter_period_s=counter.counter_period_s if counter else None,
        counter_tolerance_s=counter.counter_period_tolerance_s if counter else None,
        counter_follows_sensor=follows,
    )


def _power_source(gpu: Gpu, clock: Clock) -> PowerSource:
    """The power reading that measurements use."""
    reader = GpuReader(gpu, clock)
    source = reader.read()[-1].power_source
    if source is None:
        raise EnergyError(f"{gpu.uuid} has no power reading: {'; '.join(reader.problems())}")
    return source


def _watched_counter(gpu: Gpu, clock: Clock) -> SensorDescription | None:
    read_j = partial(gpu.driver.total_energy_j, gpu.handle)
    try:
        read_j()
    except GpuDriverError:
        return None
    return measure_counter_periods({gpu.uuid: read_j}, clock, COUNTER_WATCH_S, wanted_steps=COUNTER_STEPS).get(gpu.uuid)


def _stretches(draw: random.Random, count: int, length_s: float) -> list[float]:
    return [length_s * (1.0 + draw.uniform(0.0, STRETCH_SPREAD)) for _ in range(count)]


def _record(
    gpu: Gpu,
    source: PowerSource,
    load: Load,
    clock: Clock,
    stretches_s: Sequence[float],
    counted: list[Read] | None = None,
) -> tuple[list[Read], list[Switch]]:
    """Poll the power reading over stretches without and with the load, in turn; the counter too, where it is wanted."""
    driver, handle, averaged = gpu.driver, gpu.handle, source == "power_usage"
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
            until_s = clock.now() + stretch_s
            while (asked_s := clock.now()) < until_s:
                power_w = driver.power_usage_w(handle) if averaged else driver.power_instant(handle).power_w
                reads.append((0.5 * (asked_s + clock.now()), power_w))
                if counted is not None:
                    counted.append((clock.now(), driver.total_energy_j(handle)))
                clock.sleep(POLL_S)
    finally:
        load.stop()
    switches.append(Switch(clock.now(), False))
    return reads, switches


def find_updates(reads: Sequence[Read]) -> tuple[float, float]:
    """Period of the sensor's updates and the time of one of them, in seconds.

    The largest period with which the changes of the reading are in step (a periodogram of the change times), refined by
    a straight line through them. The readings are polled much faster than the sensor updates.

    Raises:
        ResponseError: The readings hardly change, or not in step with any period.
    """
    changes = [0.5 * (a[0] + b[0]) for a, b in pairwise(reads) if a[1] != b[1]]
    if len(changes) < 8:
        raise ResponseError(f"the power reading changed only {len(changes)} times; is the board under load?")
    sample = changes[:CHANGES_USED]  # neighbours: every n-th change would be in step with n periods
    slowest, fastest = 1.0 / LONGEST_UPDATE_S, 1.0 / SHORTEST_UPDATE_S
    step = 1.0 / (8.0 * (sample[-1] - sample[0]))
    for i in range(math.ceil((fastest - slowest) / step)):
        frequency = slowest + i * step
        if _in_step(sample, frequency) >= IN_STEP:
            best = max((frequency + 0.25 * k * step for k in range(17)), key=lambda f: _in_step(sample, f))
            # Least squares of the change times over their number, for which the period must be nearly right.
            numbers = [round((t - sample[0]) / (1.0 / best)) for t in changes]
            period_s, phase_s = statistics.linear_regression(numbers, changes)
            return period_s, phase_s
    raise ResponseError("the power reading does not change at regular times")


def _in_step(changes: Sequence[float], frequency: float) -> float:
    """Length of the mean phase vector of some times."""
    turns = 2.0 * math.pi * frequency
    x = math.fsum(math.cos(turns * (t - changes[0])) for t in changes)
    y = math.fsum(math.sin(turns * (t - changes[0])) for t in changes)
    return math.hypot(x, y) / len(changes)


def readings_by_update(reads: Sequence[Read], period_s: float, phase_s: float) -> list[Read]:
    """For each update its time and the value that it published."""
    times = [t for t, _ in reads]
    first = math.ceil((times[0] - phase_s) / period_s)
    last = math.floor((times[-1] - 0.5 * period_s - phase_s) / period_s)
    moments = [phase_s + number * period_s for number in range(first, last + 1)]
    return [(update_s, reads[bisect_left(times, update_s + 0.5 * period_s)][1]) for update_s in moments]


def readings_by_change(reads: Sequence[Read], period_s: float) -> list[Read]:
    """For each update its time and the value that it published, where updates come late.

    Reading the counter delays them: on an H100 with driver 580 they came 85 to 136 ms apart instead of 100. An update
    is where the reading changes; those that published the same value again are put in at the usual distance.
    """
    published = [reads[0]]
    for before, after in pairwise(reads):
        if after[1] != before[1]:
            time_s = 0.5 * (before[0] + after[0])
            unseen = round((time_s - published[-1][0]) / period_s) - 1
            last_s, same_w = published[-1]
            published += [(last_s + number * period_s, same_w) for number in range(1, unseen + 1)]
            published.append((time_s, after[1]))
    return published


def find_averaging_window(published: Sequence[Read], switches: Sequence[Switch]) -> float:
    """Averaging window in seconds, from how much of each step shows at the updates after it.

    An update `delay` after a step shows `delay / window` of it, and all of it from `window` on. The load's own latency
    is fitted beside it. The last of the switches only ends the last stretch.

    Raises:
        ResponseError: No step was clear enough.
    """
    shown = _shown_of_steps(published, switches)
    if len(shown) < 3:
        raise ResponseError("the load makes no clear steps in the power reading")
    ratio = LONGEST_WINDOW_S / SHORTEST_WINDOW_S
    coarse = [SHORTEST_WINDOW_S * ratio ** (i / 79) for i in range(80)]
    window_s, latency_s = _best_fit(shown, coarse, [0.002 * i for i in range(round(LONGEST_LATENCY_S / 0.002) + 1)])
    fine = [window_s * (0.9 + 0.004 * i) for i in range(51)]
    near = [max(0.0, latency_s + 0.0005 * i) for i in range(-4, 5)]
    return _best_fit(shown, fine, near)[0]


def _shown_of_steps(published: Sequence[Read], switches: Sequence[Switch]) -> list[Read]:
    """(delay after a switch in seconds, share of the step that shows) of every update that can tell."""
    noise = noise_w([*plateaus(published, switches, on=True), *plateaus(published, switches, on=False)])
    shown = []
    for before, switch, after in zip(switches, switches[1:], switches[2:], strict=False):
        old, new = _level(published, before, switch), _level(published, switch, after)
        if old is None or new is None or abs(new - old) < max(1.0, CLEAR_STEP * noise):
            continue
        settled = 0
        for t, w in _between(published, switch.time_s, after.time_s):
            share = (w - old) / (new - old)
            shown.append((t - switch.time_s, share))
            settled += share > SETTLED_SHARE
            if settled == SETTLED_UPDATES:  # all that follow would only say the same again
                break
    return shown


def _best_fit(shown: Sequence[Read], windows_s: Sequence[float], latencies_s: Sequence[float]) -> tuple[float, float]:
    def misfit(window_s: float, latency_s: float) -> float:
        return math.fsum((share - min(1.0, max(0.0, (delay - latency_s) / window_s))) ** 2 for delay, share in shown)

    return min(((w, d) for w in windows_s for d in latencies_s), key=lambda candidate: misfit(*candidate))


def plateaus(published: Sequence[Read], switches: Sequence[Switch], *, on: bool) -> list[list[float]]:
    """Settled values after each switch to `on`: those of the last third of the stretch."""
    levels = []
    for a, b in pairwise(switches):
        if a.on is on:
            settled = _between(published, b.time_s - (b.time_s - a.time_s) / 3.0, b.time_s)
            levels.append([w for _, w in settled])
    return [values for values in levels if values]


def _level(published: Sequence[Read], start: Switch, end: Switch) -> float | None:
    levels = plateaus(published, (start, end), on=start.on)
    return statistics.median(levels[0]) if levels else None


def _between(published: Sequence[Read], start_s: float, end_s: float) -> Sequence[Read]:
    return published[bisect_left(published, (start_s,)) : bisect_left(published, (end_s,))]


def noise_w(levels: Sequence[Sequence[float]]) -> float:
    """Standard deviation in watts of readings that should all be the same, pooled over stretches."""
    freedom = sum(len(values) - 1 for values in levels)
    if freedom < 1:
        return 0.0
    squares = sum((w - statistics.fmean(values)) ** 2 for values in levels for w in values)
    return math.sqrt(squares / freedom)


def describe(found: SensorCalibration) -> str:
    """A calibration for people."""
    counter = "no steps seen"
    if found.counter_period_s is not None and found.counter_tolerance_s is not None:
        counter = f"{1000 * found.counter_period_s:.1f} ± {1000 * found.counter_tolerance_s:.1f} ms"
    kind = {None: "not known", True: "what the sensor sees", False: "also what the sensor misses"}
    return f"""\
{found.uuid} (driver {found.driver_version}), by {found.power_source}
  update period      {1000 * found.update_s:.1f} ms
  averaging window   {1000 * found.averaging_window_s:.1f} ms
  sees               {100 * found.sampled_share:.0f} % of the time
  counter period     {counter}
  counter adds up    {kind[found.counter_follows_sensor]}
  noise              {found.noise_w:.2f} W
  idle / load        {found.idle_power_w:.1f} W / {found.load_power_w:.1f} W
  {GAIN_NOTE}"""


def main(directory: Path | None = None) -> None:
    """Calibrate every GPU that CUDA shows here, one after the other."""
    host = Host()
    gpus = [gpu for gpu in host.visible_gpus() if not gpu.is_mig]
    if not gpus:
        raise EnergyError("no whole GPU is visible here; see CUDA_VISIBLE_DEVICES")
    for gpu in gpus:
        found = calibrate(gpu, MatmulLoad(gpu.cuda_index or 0), host.clock)
        path = save_calibration(found, directory or host.calibration_dir)
        typer.echo(f"{describe(found)}\n  stored in {path}")


if __name__ == "__main__":
    try:
        main()
    except LLEMError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
