"""One window over several machines: each meters its own boards, and their readings are put on one clock.

    here    ?  o  [ start_s <----------- the window -----------> end_s ]    o  ?        ? clocks compared
    n2      ?  o  :                                                    :    o  ?        o a meter opened, or closed

Every meter is open before the window begins and closes after it has ended, so that the edges are the same instants for
all boards, whatever the network took. A comparison of two clocks is a question and an answer: the other clock showed
its time somewhere between (RFC 5905, 8); of several the quickest is believed, and half of what it took is how far it
may be wrong. Comparisons before and after the window show how the clock drifts between them. The moved readings go
through `gpu_measurement` as if all boards were here; the offset's share of the error is in the budget of each.

Where the readings of one machine are missing there is no figure at all: a part must not pass for the whole.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.telemetry import COLUMNS, SampleLog, Telemetry
from llenergymeasure.core.energy.types import (
    BoardRecord,
    CounterRead,
    Elsewhere,
    EnergyBackend,
    EnergyMeasurement,
    GpuWindow,
    TrackingHandle,
)
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError, LLEMError

COMPARISONS: Final = 16
"""How often two clocks are compared before a window, and again after it."""

MAX_RATE: Final = 0.001
"""How much faster or slower than another a clock may run: each is adjusted by 500 ppm at the most (adjtimex(2))."""

_TIME: Final = COLUMNS.index("time_s")


class Place(Protocol):
    """Another machine with boards of a run, and a meter of its own there."""

    @property
    def node(self) -> str:
        """What people call it."""

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Its boards."""

    def now(self) -> float:
        """What its measurement clock shows, in seconds."""

    def open(self, devices: Sequence[DeviceId]) -> Callable[[], None]:
        """Have a window opened over some of its boards; gives what waits until that is done.

        Raises:
            EnergyError: Its meter could not (from what waits).
        """

    def close(self) -> Callable[[], EnergyMeasurement]:
        """Have it closed; gives what waits for its readings, on its own clock."""


@dataclass(frozen=True, slots=True)
class ClockComparison:
    """Another clock showed `there_s` at some moment between question and answer."""

    asked_s: float
    there_s: float
    answered_s: float

    @property
    def offset_s(self) -> float:
        """How far it is ahead."""
        return self.there_s - 0.5 * (self.asked_s + self.answered_s)

    @property
    def half_width_s(self) -> float:
        """How far that may be wrong."""
        return 0.5 * (self.answered_s - self.asked_s)


def compare_clocks(there: Callable[[], float], clock: Clock) -> ClockComparison:
    """The quickest of some comparisons with another clock."""

    def once() -> ClockComparison:
        asked_s = clock.now()
        there_s = there()
        return ClockComparison(asked_s, there_s, clock.now())

    return min((once() for _ in range(COMPARISONS)), key=lambda comparison: comparison.half_width_s)


@dataclass(frozen=True, slots=True)
class ClockTie:
    """How another clock relates to this one around a window: by what was compared before and after it."""

    before: ClockComparison
    after: ClockComparison

    def here(self, there_s: float) -> float:
        """The instant of this clock at which the other showed `there_s`."""
        return there_s - self._ahead(there_s)

    def at(self, node: str, start_s: float, end_s: float) -> Elsewhere:
        """What is recorded of the other clock for a window of this one."""
        first_s, last_s = (self._ahead(instant_s + self.before.offset_s) for instant_s in (start_s, end_s))
        between_s = max(start_s - self.before.asked_s, 0.0) + max(self.after.answered_s - end_s, 0.0)
        half_width_s = max(self.before.half_width_s, self.after.half_width_s) + MAX_RATE * between_s
        return Elsewhere(node, first_s, last_s - first_s, half_width_s)

    def jump_s(self) -> float | None:
        """By how much the clocks came apart, where that is more than clocks drift."""
        apart_s = self.after.offset_s - self.before.offset_s
        allowed_s = MAX_RATE * (self.after.answered_s - self.before.asked_s)
        return apart_s if abs(apart_s) > allowed_s + self.before.half_width_s + self.after.half_width_s else None

    def _ahead(self, there_s: float) -> float:
        """The offset, on a straight line through both comparisons."""
        length_s = self.after.there_s - self.before.there_s
        share = (there_s - self.before.there_s) / length_s if length_s > 0 else 0.0
        return self.before.offset_s + share * (self.after.offset_s - self.before.offset_s)


@dataclass(frozen=True, slots=True)
class PlaceReadings:
    """What the meter of another machine read, on its own clock."""

    node: str
    tie: ClockTie
    energy: EnergyMeasurement


def sum_places(
    start_s: float, end_s: float, here: EnergyMeasurement, others: Sequence[PlaceReadings], spill_dir: Path | None
) -> EnergyMeasurement:
    """The energy from `start_s` to `end_s` over all machines, from their raw readings; takes the samples over.

    Args:
        here: What was read on the machine that the clock is of.
    """
    theirs = ((other.node, note) for other in others for note in other.energy.notes)
    notes = [*here.notes, *(MeasurementWarning(note.code, f"{node}: {note.message}") for node, note in theirs)]
    everywhere = (here, *(other.energy for other in others))
    if reasons := "; ".join(_gaps(here, others)):
        told = f"the energy of a run on several machines is not known: {reasons}"
        for other in others:
            other.energy.close()
        notes.append(MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, told))
        return EnergyMeasurement(
            start_s, end_s, telemetry=here.telemetry, notes=tuple(dict.fromkeys(notes)), meter=here.meter
        )
    known = [measured.gpu_window for measured in everywhere if measured.gpu_window is not None]
    boards = [*known[0].boards]
    logs = _logs_of(here.telemetry, float, spill_dir)
    for other, window in zip(others, known[1:], strict=True):
        boards += [_moved(board, other, start_s, end_s) for board in window.boards]
        logs |= _logs_of(other.energy.telemetry, other.tie.here, spill_dir)
        other.energy.close()
    whole = GpuWindow(
        start_s=start_s,
        end_s=end_s,
        boards=tuple(boards),
        sampling_interval_s=max(window.sampling_interval_s for window in known),
        gain_uncertainty_pct=max(window.gain_uncertainty_pct for window in known),
        meter=" + ".join(dict.fromkeys(window.meter for window in known)),
    )
    report = None if here.telemetry is None else here.telemetry.report
    here.close()
    energy = gpu_measurement(whole, Telemetry(logs, report))
    return replace(
        energy,
        cpu_j=_sum(measured.cpu_j for measured in everywhere),
        dram_j=_sum(measured.dram_j for measured in everywhere),
        notes=tuple(dict.fromkeys((*energy.notes, *notes))),
        meter_version=" + ".join(dict.fromkeys(said.meter_version for said in everywhere if said.meter_version)),
    )


def _gaps(here: EnergyMeasurement, others: Sequence[PlaceReadings]) -> Iterator[str]:
    """Why there is no figure for all machines together."""
    missing = ["this machine"] if here.gpu_window is None else []
    missing += [other.node for other in others if other.energy.gpu_window is None]
    if missing:
        yield f"there are no readings of boards from {', '.join(missing)}"
    jumped = [f"{other.node} by {jump_s:.3g} s" for other in others if (jump_s := other.tie.jump_s()) is not None]
    if jumped:
        yield f"clocks came apart within the window: {', '.join(jumped)}"


def _moved(board: BoardRecord, other: PlaceReadings, start_s: float, end_s: float) -> BoardRecord:
    """A board's readings on the clock of this machine."""

    def reads(theirs: Iterable[CounterRead]) -> tuple[CounterRead, ...]:
        here = other.tie.here
        return tuple(CounterRead(here(read.asked_s), here(read.answered_s), read.energy_j) for read in theirs)

    elsewhere = other.tie.at(other.node, start_s, end_s)
    return replace(board, before=reads(board.before), after=reads(board.after), elsewhere=elsewhere)


def _logs_of(
    telemetry: Telemetry | None, here: Callable[[float], float], spill_dir: Path | None
) -> dict[DeviceId, SampleLog]:
    """Samples with their times moved by `here`."""
    logs: dict[DeviceId, SampleLog] = {}
    for device in telemetry.devices if telemetry is not None else ():
        log = logs[device] = SampleLog(spill_dir)
        for block in telemetry.blocks(device) if telemetry is not None else ():
            log.extend((*block[:_TIME], array("d", map(here, block[_TIME])), *block[_TIME + 1 :]))
    return logs


def _sum(parts: Iterable[float | None]) -> float | None:
    all_parts = list(parts)
    known = [part for part in all_parts if part is not None]
    return math.fsum(known) if len(known) == len(all_parts) else None


@dataclass(frozen=True, slots=True)
class _Open:
    """What it takes to close a window over several machines."""

    here: TrackingHandle
    compared: tuple[ClockComparison, ...]


class SeveralMeters:
    """An `EnergyBackend` over several machines.

    Args:
        here: That of the boards of this one.
        others: The other machines, each with its boards of the run.
        spill_dir: See `MeterOptions`.
    """

    def __init__(
        self,
        here: EnergyBackend,
        others: Sequence[tuple[Place, tuple[DeviceId, ...]]],
        clock: Clock,
        spill_dir: Path | None = None,
    ) -> None:
        self._here = here
        self._others = tuple(others)
        self._clock = clock
        self._spill_dir = spill_dir

    @property
    def name(self) -> str:
        """That of the meter here."""
        return self._here.name

    def is_available(self) -> bool:
        """Whether the meter here has a reading; the others tell when a window is opened."""
        return self._here.is_available()

    def start_tracking(self) -> TrackingHandle:
        """Open a window everywhere; it begins when all are open.

        Raises:
            EnergyError: A meter could not; none is left open.
        """
        compared = tuple(compare_clocks(place.now, self._clock) for place, _ in self._others)
        opening = [place.open(devices) for place, devices in self._others]
        here = self._here.start_tracking()
        try:
            for wait in opening:
                wait()
        except BaseException:
            self._here.stop_tracking(here).close()
            raise
        return TrackingHandle(self._clock.now(), _Open(here, compared))

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close it everywhere, now; see `sum_places`."""
        if not isinstance(handle.state, _Open):
            raise EnergyError("this window was not opened by the meters of several machines")
        end_s = self._clock.now()
        closing = [place.close() for place, _ in self._others]
        here = self._here.stop_tracking(handle.state.here)
        rows = zip(self._others, closing, handle.state.compared, strict=True)
        try:
            others = [self._readings(place, wait, before) for (place, _), wait, before in rows]
        except BaseException:
            here.close()
            raise
        return sum_places(handle.start_s, end_s, here, others, self._spill_dir)

    def _readings(self, place: Place, wait: Callable[[], EnergyMeasurement], before: ClockComparison) -> PlaceReadings:
        """What a machine has read; nothing where it cannot tell that any more: what was generated stands without it."""
        energy = None
        try:
            energy = wait()
            return PlaceReadings(place.node, ClockTie(before, compare_clocks(place.now, self._clock)), energy)
        except (LLEMError, OSError) as error:
            if energy is not None:
                energy.close()
            note = MeasurementWarning(WarningCode.TELEMETRY_UNAVAILABLE, str(error).removeprefix(f"{place.node}: "))
            unread = EnergyMeasurement(before.there_s, before.there_s, notes=(note,))
            return PlaceReadings(place.node, ClockTie(before, before), unread)
