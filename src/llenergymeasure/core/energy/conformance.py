"""One set of checks that every meter must pass, whoever wrote it.

    assert check_meter(lambda devices, clock: MyMeter(devices, clock)) == []

The checks measure a few short windows on this machine, whatever it is doing. They cannot know the true joules; they
look at what can be known: windows on the clock that was given, figures of a window and not of all time, joules that are
a number above 0 or `None` with a reason, a stated method, scope and uncertainty, and a process left as it was found.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.core.conformance import ConformanceFailure, failures_of
from llenergymeasure.core.energy.external import MeterFactory, problems
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.domain.energy import absolute_half_width

WINDOW_S: Final = 4.0
"""Length of the longer window, in seconds: the shorter one still holds an update of a meter that has one a second."""

SHORT_SHARE: Final = 0.25
"""Length of the shorter window, as a part of the longer one: no idle machine draws four times the power in it."""

SUM_TOLERANCE: Final = 1e-6
"""Difference of the devices' joules from the total up to which they add up."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A window, and when it was opened and closed, on the given clock in seconds."""

    opening_s: float
    opened_s: float
    closing_s: float
    closed_s: float
    energy: EnergyMeasurement


def check_meter(
    factory: MeterFactory,
    devices: Sequence[DeviceId] = (CPU_DEVICE,),
    *,
    clock: Clock | None = None,
    window_s: float = WINDOW_S,
) -> list[ConformanceFailure]:
    """Run every check on a fresh meter; returns the promises not kept.

    Args:
        devices: What a run would use here: UUIDs of GPUs, or `("cpu",)`.
        clock: `None`: the machine's own.
        window_s: Long enough for the meter to tell the energy of a quarter of it, in seconds.
    """
    clock = clock or SystemClock()
    threads, said = threading.active_count(), io.StringIO()
    with contextlib.redirect_stdout(said):
        failures = _measure(factory, devices, clock, window_s)
    failures += failures_of("silence", _prints_nothing(said.getvalue()))
    return failures + failures_of("threads", _leaves_no_thread(threads))


def _measure(
    factory: MeterFactory, devices: Sequence[DeviceId], clock: Clock, window_s: float
) -> list[ConformanceFailure]:
    try:
        meter = factory(tuple(devices), clock)
    except Exception as error:  # noqa: BLE001 (a meter under test may raise anything)
        return [ConformanceFailure("setup", f"{type(error).__name__}: {error}")]
    failures = failures_of("protocol", _speaks_the_protocol(meter))
    failures += [] if failures else failures_of("available", _is_available(meter))
    if failures:
        return failures
    seen: list[_Seen] = []
    for name, seconds in (("abandoned", 0.0), ("long", window_s), ("short", SHORT_SHARE * window_s)):
        try:
            seen.append(_window(meter, clock, seconds))
        except Exception as error:  # noqa: BLE001 (as above)
            return [*failures, ConformanceFailure(f"{name} window", f"{type(error).__name__}: {error}")]
    _, long, short = seen
    for window in seen:
        failures += failures_of("clock", _is_on_the_clock(window))
        failures += failures_of("figure", problems(window.energy))
    for window in (long, short):
        for check, ask in _OF_FIGURES.items():
            failures += failures_of(check, ask(window.energy))
    failures += failures_of("window", _tells_the_window_alone(long.energy, short.energy))
    for window in seen:
        window.energy.close()
    return list(dict.fromkeys(failures))


def _window(meter: EnergyBackend, clock: Clock, seconds: float) -> _Seen:
    opening_s = clock.now()
    handle = meter.start_tracking()
    opened_s = clock.now()
    clock.sleep(seconds)
    closing_s = clock.now()
    energy = meter.stop_tracking(handle)
    if energy.start_s != handle.start_s:
        raise ValueError("stop_tracking() gave a window that does not begin where its handle does")
    return _Seen(opening_s, opened_s, closing_s, clock.now(), energy)


def _speaks_the_protocol(meter: EnergyBackend) -> Iterator[str]:
    if not isinstance(meter, EnergyBackend):
        yield f"{type(meter).__name__} lacks members of EnergyBackend"
    elif not meter.name.strip():
        yield "its name is empty"


def _is_available(meter: EnergyBackend) -> Iterator[str]:
    if meter.is_available() is not True:
        yield "is_available() is not True here; connect what it reads"


def _is_on_the_clock(window: _Seen) -> Iterator[str]:
    if not window.opening_s <= window.energy.start_s <= window.opened_s:
        yield "start_s was not read from the given clock while start_tracking() ran"
    if not window.closing_s <= window.energy.end_s <= window.closed_s:
        yield "end_s was not read from the given clock while stop_tracking() ran"


def _tells_joules(energy: EnergyMeasurement) -> Iterator[str]:
    if energy.total_j is None:
        reasons = "; ".join(note.message for note in energy.notes)
        yield f"no figure for a window of {energy.duration_sec:.2f} s ({reasons}); lengthen window_s if it is too short"


def _states_uncertainty(energy: EnergyMeasurement) -> Iterator[str]:
    if energy.total_j is None or energy.method == "model_estimate":
        return
    if not energy.components:
        yield "components is empty: state at least how finely the meter resolves a window, as a 95 % half-width"
    elif not (math.isfinite(width_j := absolute_half_width(energy.components)) and width_j > 0):
        yield f"the stated half-width is {width_j} J; no meter is without error"


def _adds_up(energy: EnergyMeasurement) -> Iterator[str]:
    known = [joules for joules in energy.per_gpu_j.values() if joules is not None]
    if energy.total_j is None or not known or len(known) < len(energy.per_gpu_j):
        return
    total_j = math.fsum(known)
    if abs(total_j - energy.total_j) > SUM_TOLERANCE * energy.total_j:
        yield f"per_gpu_j adds up to {total_j:g} J and total_j is {energy.total_j:g} J"


_OF_FIGURES: Final[dict[str, Callable[[EnergyMeasurement], Iterator[str]]]] = {
    "joules": _tells_joules,
    "uncertainty": _states_uncertainty,
    "devices": _adds_up,
}


def _tells_the_window_alone(first: EnergyMeasurement, second: EnergyMeasurement) -> Iterator[str]:
    if first.total_j is None or second.total_j is None:
        return
    if second.total_j >= first.total_j:
        yield (
            f"{first.total_j:.3g} J in {first.duration_sec:.2f} s, then {second.total_j:.3g} J in "
            f"{second.duration_sec:.2f} s: joules must be those of the window alone"
        )


def _prints_nothing(said: str) -> Iterator[str]:
    if said:
        yield f"it prints to standard output, which belongs to results: {said.strip()[:80]!r}"


def _leaves_no_thread(before: int) -> Iterator[str]:
    left = threading.active_count() - before
    if left > 0:
        yield f"{left} threads are still there after the last window was closed"
