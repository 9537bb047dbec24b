"""One window over several machines, on virtual clocks: what is stated holds, and a part never passes for the whole."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nvml.virtual import Board
from tests.nvml.virtual_run import VirtualClock, random_board
from tests.nvml.waveform import constant

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.gpu_energy import gpu_measurement, recompute_energy, write_trace
from llenergymeasure.core.energy.several import (
    ClockComparison,
    ClockTie,
    PlaceReadings,
    SeveralMeters,
    compare_clocks,
    sum_places,
)
from llenergymeasure.core.energy.strategies import find_counter_steps
from llenergymeasure.core.energy.telemetry import SampleLog, Telemetry, TelemetrySample
from llenergymeasure.core.energy.types import (
    BoardRecord,
    CounterRead,
    Elsewhere,
    EnergyMeasurement,
    GpuWindow,
    PowerSampling,
    SensorDescription,
    TrackingHandle,
)
from llenergymeasure.core.energy.uncertainty import clock_components
from llenergymeasure.domain.energy import comparative_half_width
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

DRAWS = 150
POLL_S = 0.001
BURST_S = 0.12
IDLE_W, LOAD_W = 100.0, 500.0


@dataclass
class FarClock:
    """Another machine's clock: an origin and a rate of its own."""

    true: VirtualClock
    ahead_s: float = 0.0
    rate: float = 0.0

    def now(self) -> float:
        return self.ahead_s + (1.0 + self.rate) * self.true.now()

    def sleep(self, seconds: float) -> None:
        self.true.sleep(seconds / (1.0 + self.rate))

    def wall(self) -> datetime:
        return self.true.wall()

    def true_s(self, shown_s: float) -> float:
        return (shown_s - self.ahead_s) / (1.0 + self.rate)


@dataclass
class BoardMeter:
    """Reads a board as a meter does, by the clock of its machine."""

    device: str
    board: Board
    clock: FarClock
    name: str = "nvml"
    version: str = ""
    open_windows: int = 0

    def is_available(self) -> bool:
        return True

    def start_tracking(self) -> TrackingHandle:
        self.open_windows += 1
        from_s = self.clock.now() - 0.25
        return TrackingHandle(self.clock.now(), (from_s, self._burst()))

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        self.open_windows -= 1
        assert isinstance(handle.state, tuple)
        (from_s, before), end_s = handle.state, self.clock.now()
        record = BoardRecord(
            device=self.device,
            board=self.device,
            has_counter=True,
            before=before,
            after=self._burst(),
            sensor=SensorDescription(counter_period_s=0.1, averaging_window_s=0.025),
            sampling=PowerSampling(0.025, 0.1),
        )
        log = SampleLog()
        until_s = self.clock.now()
        times_s = [from_s + 0.1 * n for n in range(int((until_s - from_s) / 0.1) + 1)]
        for time_s in (*times_s, until_s):
            log.append(TelemetrySample(time_s, self.board.power_reading_w(self.clock.true_s(time_s))))
        window = GpuWindow(handle.start_s, end_s, (record,), 0.1, 5.0, self.name)
        return replace(gpu_measurement(window, Telemetry({self.device: log})), meter_version=self.version)

    def _burst(self) -> tuple[CounterRead, ...]:
        def read_j() -> float:
            self.clock.sleep(20e-6)
            return self.board.counter_reading_j(self.clock.true.now())

        return find_counter_steps({"gpu": read_j}, self.clock, BURST_S, POLL_S)["gpu"]


@dataclass
class VirtualPlace:
    """A machine behind a network whose two ways take times of their own."""

    node: str
    meter: BoardMeter
    travel_s: Callable[[], float]
    fails: str = ""
    _handle: TrackingHandle | None = field(default=None, repr=False)

    @property
    def devices(self) -> tuple[str, ...]:
        return (self.meter.device,)

    def now(self) -> float:
        self.meter.clock.true.sleep(self.travel_s())
        shown_s = self.meter.clock.now()
        self.meter.clock.true.sleep(self.travel_s())
        return shown_s

    def open(self, devices: Sequence[str]) -> Callable[[], None]:
        def wait() -> None:
            self.meter.clock.true.sleep(self.travel_s())
            if self.fails:
                raise EnergyError(self.fails)
            self._handle = self.meter.start_tracking()

        return wait

    def close(self) -> Callable[[], EnergyMeasurement]:
        def wait() -> EnergyMeasurement:
            assert self._handle is not None
            return self.meter.stop_tracking(self._handle)

        return wait


@dataclass
class Rig:
    """Machines with a board each; the first has the clock."""

    draw: random.Random
    machines: int = 3

    def __post_init__(self) -> None:
        self.true = VirtualClock(self.draw.uniform(10.0, 20.0))
        self.boards = [random_board("a100", constant(IDLE_W), self.draw) for _ in range(self.machines)]
        rates = [0.0] + [self.draw.uniform(-5e-4, 5e-4) for _ in self.boards[1:]]
        starts = [0.0] + [self.draw.uniform(-1e6, 1e6) for _ in self.boards[1:]]
        clocks = [FarClock(self.true, ahead_s, rate) for ahead_s, rate in zip(starts, rates, strict=True)]
        meters = [BoardMeter(f"GPU-{i}", *both) for i, both in enumerate(zip(self.boards, clocks, strict=True))]
        self.here = meters[0]
        self.places = [VirtualPlace(f"n{i}", meter, self._travel) for i, meter in enumerate(meters) if i]
        self.meter = SeveralMeters(self.here, [(place, place.devices) for place in self.places], clocks[0])

    def _travel(self) -> float:
        return self.draw.uniform(0.0002, 0.0002 + self.draw.expovariate(1000.0))

    def measure(self, length_s: float) -> tuple[EnergyMeasurement, float]:
        """A window with a load in it, and what it really took."""
        handle = self.meter.start_tracking()
        for board in self.boards:
            board.set_power(LOAD_W, self.true.now())
        self.true.sleep(length_s)
        energy = self.meter.stop_tracking(handle)
        return energy, sum(board.true_energy_j(energy.start_s, energy.end_s) for board in self.boards)


def test_the_stated_interval_holds_the_true_joules_of_all_machines() -> None:
    held = 0
    for seed in range(DRAWS):
        rig = Rig(random.Random(seed))
        energy, true_j = rig.measure(rig.draw.uniform(0.3, 4.0))
        assert energy.total_j is not None
        assert energy.method == "hardware_counter"
        assert energy.total_j == pytest.approx(sum(energy.per_gpu_j[f"GPU-{i}"] or math.nan for i in range(3)))
        held += abs(energy.total_j - true_j) <= comparative_half_width(energy.components)
        for place in rig.places:
            recorded, clock = energy.elsewhere[place.meter.device], place.meter.clock
            ahead_s = clock.ahead_s + clock.rate * energy.start_s
            assert recorded.node == place.node
            assert recorded.offset_s == pytest.approx(ahead_s, abs=recorded.half_width_s)
            drift_s = clock.rate * energy.duration_sec
            assert recorded.drift_s == pytest.approx(drift_s, abs=2 * recorded.half_width_s)
    assert held >= 0.95 * DRAWS, held


def test_the_energy_comes_again_from_the_trace_and_does_not_depend_on_the_order_of_machines(tmp_path: Path) -> None:
    rig = Rig(random.Random(7))
    energy, _ = rig.measure(1.0)
    again = recompute_energy(write_trace(energy, tmp_path / "trace.parquet"))
    assert (again.total_j, again.components, again.elsewhere) == (energy.total_j, energy.components, energy.elsewhere)

    tie = ClockTie(ClockComparison(0.0, 5.0, 0.0), ClockComparison(9.0, 14.0, 9.0))
    window, telemetry = energy.gpu_window, energy.telemetry
    assert window is not None
    assert telemetry is not None

    def alone(board: BoardRecord) -> EnergyMeasurement:
        log = SampleLog()
        for block in telemetry.blocks(board.device):
            log.extend(block)
        return gpu_measurement(replace(window, boards=(board,)), Telemetry({board.device: log}))

    start_s, end_s = energy.start_s - 5.0, energy.end_s - 5.0
    totals = []
    for order in ((1, 2), (2, 1)):
        here = EnergyMeasurement(start_s, end_s, gpu_window=replace(window, boards=()), telemetry=Telemetry({}))
        others = [PlaceReadings(f"n{i}", tie, alone(window.boards[i])) for i in order]
        totals.append(sum_places(start_s, end_s, here, others, None).total_j)
    assert totals[0] == totals[1] == pytest.approx(sum(energy.per_gpu_j[f"GPU-{i}"] or math.nan for i in (1, 2)))


@given(
    ahead_s=st.floats(-1e6, 1e6),
    rate=st.floats(-5e-4, 5e-4),
    ways_s=st.lists(st.tuples(st.floats(1e-5, 0.05), st.floats(1e-5, 0.05)), min_size=2, max_size=2),
    length_s=st.floats(0.1, 10_000.0),
    share=st.floats(0.0, 1.0),
)
def test_an_instant_of_another_clock_is_found_as_closely_as_is_stated(
    ahead_s: float, rate: float, ways_s: list[tuple[float, float]], length_s: float, share: float
) -> None:
    true = VirtualClock(100.0)
    clock = FarClock(true, ahead_s, rate)
    compared, edges_s = [], []
    for there_s, back_s in ways_s:

        def shown(there_s: float = there_s, back_s: float = back_s) -> float:
            true.sleep(there_s)
            shown_s = clock.now()
            true.sleep(back_s)
            return shown_s

        compared.append(compare_clocks(shown, true))
        edges_s.append(true.now() if len(compared) == 1 else compared[1].asked_s)
        true.sleep(length_s)
    tie = ClockTie(*compared)
    stated = tie.at("n1", *edges_s)
    instant_s = edges_s[0] + share * (edges_s[1] - edges_s[0])
    shown_s = ahead_s + (1.0 + rate) * instant_s
    assert tie.here(shown_s) == pytest.approx(instant_s, abs=stated.half_width_s + 1e-8)
    assert tie.jump_s() is None


def test_each_version_of_a_package_that_metered_is_named_once() -> None:
    rig = Rig(random.Random(1))
    rig.here.version, *others = "0.16.0", "0.13.0", "0.16.0"
    for place, version in zip(rig.places, others, strict=False):
        place.meter.version = version
    assert rig.measure(0.5)[0].meter_version == "0.16.0 + 0.13.0"


def test_where_a_machine_has_no_readings_there_is_no_sum_and_it_is_named() -> None:
    rig = Rig(random.Random(1))
    why = MeasurementWarning(WarningCode.TELEMETRY_UNAVAILABLE, "the driver is gone")
    whole = rig.places[1].meter.stop_tracking
    rig.places[1].meter.stop_tracking = lambda handle: EnergyMeasurement(  # type: ignore[method-assign]
        handle.start_s, whole(handle).end_s, notes=(why,)
    )
    energy, _ = rig.measure(0.5)
    assert (energy.total_j, energy.components, energy.per_gpu_j) == (None, (), {})
    told = {note.code: note.message for note in energy.notes}
    assert "no readings of boards from n2" in told[WarningCode.ENERGY_UNAVAILABLE]
    assert told[WarningCode.TELEMETRY_UNAVAILABLE] == "n2: the driver is gone"


@pytest.mark.parametrize("asked", ["close", "now"])
def test_a_machine_that_is_gone_at_the_end_costs_the_joules_and_not_the_run(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> NoReturn:
        raise EnergyError("n2: no answer")

    rig = Rig(random.Random(4))
    handle = rig.meter.start_tracking()
    rig.true.sleep(0.5)
    monkeypatch.setattr(rig.places[1], asked, gone if asked == "now" else lambda: gone)
    energy = rig.meter.stop_tracking(handle)
    assert (energy.total_j, rig.here.open_windows) == (None, 0)
    told = {note.code: note.message for note in energy.notes}
    assert "no readings of boards from n2" in told[WarningCode.ENERGY_UNAVAILABLE]
    assert told[WarningCode.TELEMETRY_UNAVAILABLE] == "n2: no answer"


def test_a_clock_that_jumped_within_the_window_costs_the_figure() -> None:
    rig = Rig(random.Random(2))
    handle = rig.meter.start_tracking()
    rig.true.sleep(1.0)
    rig.places[0].meter.clock.ahead_s += 0.3
    energy = rig.meter.stop_tracking(handle)
    assert energy.total_j is None
    assert any("clocks came apart within the window: n1 by 0.3" in note.message for note in energy.notes)


def test_a_machine_that_cannot_open_its_window_leaves_none_open_here() -> None:
    rig = Rig(random.Random(3))
    rig.places[1].fails = "n2: no driver"
    with pytest.raises(EnergyError, match="n2: no driver"):
        rig.meter.start_tracking()
    assert rig.here.open_windows == 0


def test_the_clocks_share_of_the_error_is_its_half_width_at_both_edges_times_the_highest_power() -> None:
    board = BoardRecord("g", "g", has_counter=True, elsewhere=Elsewhere("n1", 3.0, 0.0, 0.002))
    (part,) = clock_components([100.0, 400.0, 250.0], board)
    assert (part.half_width_j, part.kind) == (pytest.approx(2 * 0.002 * 400.0), "clock")
    assert clock_components([100.0], replace(board, elsewhere=None)) == ()


def test_a_comparison_believes_the_quickest_answer() -> None:
    times = iter([0.0, 0.9, 1.0, 1.1, *(float(n) for n in range(2, 100))])

    class Ticking(VirtualClock):
        def now(self) -> float:
            return next(times)

    clock: Clock = Ticking(0.0)
    best = compare_clocks(lambda: 11.05, clock)
    assert (best.offset_s, best.half_width_s) == (pytest.approx(10.0), pytest.approx(0.05))
