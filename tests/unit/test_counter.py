"""Finding the steps of an energy counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.nvml.virtual import Board, Counter
from tests.nvml.virtual_run import VirtualClock
from tests.nvml.waveform import constant

from llenergymeasure.core.energy.fusion import CounterError, CounterStep, counter_steps, plain_counter_energy
from llenergymeasure.core.energy.strategies import describe_counter, find_counter_steps, measure_counter_periods
from llenergymeasure.core.energy.types import CounterRead


def _reader(clock: VirtualClock, period_s: float, phase_s: float = 0.0, read_s: float = 1e-5) -> Callable[[], float]:
    board = Board(constant(200.0), counter=Counter(period_s, phase_s))

    def read() -> float:
        clock.sleep(read_s)
        return board.counter_reading_j(clock.now())

    return read


def _at(time_s: float, energy_j: float) -> CounterRead:
    return CounterRead(time_s, time_s, energy_j)


def test_a_burst_ends_on_the_step_and_brackets_it() -> None:
    clock = VirtualClock(10.03)
    reads = find_counter_steps({"a": _reader(clock, 0.1)}, clock, 0.12)["a"]
    (step,) = counter_steps(reads)
    assert step.old.asked_s < 10.1 <= step.new.answered_s
    assert step.new.answered_s - step.old.asked_s < 0.001
    assert clock.now() == pytest.approx(10.1, abs=0.001)
    assert step.new.energy_j - step.old.energy_j == pytest.approx(20.0, abs=0.002)


def test_a_burst_keeps_only_the_reads_that_bound_a_step() -> None:
    clock = VirtualClock(10.001)
    assert len(find_counter_steps({"a": _reader(clock, 0.1)}, clock, 0.12)["a"]) == 3


def test_a_burst_over_several_counters_waits_for_the_last_and_keeps_the_latest_step_of_each() -> None:
    clock = VirtualClock(10.0)
    readers = {"a": _reader(clock, 0.03, 0.005), "b": _reader(clock, 0.1, 0.09)}
    reads = find_counter_steps(readers, clock, 0.12)
    a, b = counter_steps(reads["a"])[-1], counter_steps(reads["b"])[-1]
    assert clock.now() == pytest.approx(10.09, abs=0.001)
    assert b.time_s == pytest.approx(10.09, abs=0.001)
    assert a.time_s > 10.06


def test_a_burst_gives_up_in_time_and_still_reads_once() -> None:
    clock = VirtualClock(10.0)
    assert counter_steps(find_counter_steps({"a": _reader(clock, 5.0)}, clock, 0.12)["a"]) == []
    assert clock.now() <= 10.12
    assert len(find_counter_steps({"a": _reader(clock, 5.0)}, clock, 0.0)["a"]) == 1


def test_an_error_of_the_reader_passes_through() -> None:
    def lost() -> float:
        raise CounterError("GPU is lost")

    with pytest.raises(CounterError, match="GPU is lost"):
        find_counter_steps({"a": lost}, VirtualClock(0.0), 0.1)


@pytest.mark.parametrize("period_s", [0.02, 0.0987, 0.1, 0.11])
def test_the_period_is_learnt_from_a_few_steps(period_s: float) -> None:
    clock = VirtualClock(10.0)
    found = measure_counter_periods({"a": _reader(clock, period_s, 0.013)}, clock)["a"]
    assert found.counter_period_s is not None
    assert abs(found.counter_period_s - period_s) <= found.counter_period_tolerance_s <= 0.001
    assert clock.now() - 10.0 <= 6 * period_s + 0.001


@pytest.mark.parametrize(("period_s", "still_s"), [(0.4, 0.4), (5.0, 0.75)])
def test_of_a_counter_that_hardly_moves_it_is_known_for_how_long_it_stood_still(
    period_s: float, still_s: float
) -> None:
    clock = VirtualClock(10.0)
    found = measure_counter_periods({"a": _reader(clock, period_s)}, clock)["a"]
    assert found.counter_period_s is None
    assert found.counter_still_s == pytest.approx(still_s, abs=0.05)
    assert clock.now() <= 10.75


def test_a_counter_that_moved_at_every_read_was_not_seen_to_stand_still() -> None:
    """As of many boards whose reads take long: the reads are far apart then, and the counter's steps need not be."""
    clock = VirtualClock(10.0)
    assert measure_counter_periods({"a": _reader(clock, 0.1, read_s=0.3)}, clock)["a"].counter_still_s == 0.0


@pytest.mark.parametrize("read_s", [0.003, 0.02])
def test_slow_reads_hardly_blur_the_period(read_s: float) -> None:
    """Reading a counter takes 3 to 20 ms on some boards: any two steps bound the period, the farthest best."""
    for phase_s in (0.0, 0.013, 0.05, 0.081):
        clock = VirtualClock(10.0)
        found = measure_counter_periods({"a": _reader(clock, 0.1, phase_s, read_s)}, clock)["a"]
        assert found.counter_period_s is not None
        assert abs(found.counter_period_s - 0.1) <= found.counter_period_tolerance_s <= 0.5 * read_s


def test_irregular_steps_have_a_mean_period_and_a_tolerance_that_holds_each() -> None:
    steps = [CounterStep(_at(t - 0.001, t), _at(t + 0.001, t + 0.1)) for t in (0.0, 0.1, 0.23, 0.3, 0.41)]
    found = describe_counter(steps)
    assert found.counter_period_s == pytest.approx(0.1025)
    assert found.counter_period_tolerance_s >= 0.0325


def test_the_plain_difference_takes_the_reads_nearest_to_the_window() -> None:
    before = [_at(0.0, 100.0), _at(0.1, 110.0)]
    after = [_at(5.0, 600.0), _at(5.1, 610.0)]
    assert plain_counter_energy(before, after) == 490.0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([_at(0.0, 100.0)], [_at(5.0, 3.0)], "went backwards"),
        ([_at(0.0, 100.0)], [_at(5.0, 103.0), _at(5.1, 1.0)], "went backwards"),
        ([_at(0.0, 100.0)], [_at(5.0, 100.0), _at(5.1, 100.0)], "stood still"),
        ([], [_at(5.0, 100.0)], "not read on both sides"),
        ([_at(0.0, 100.0)], [], "not read on both sides"),
    ],
)
def test_a_counter_that_cannot_be_right_is_an_error_and_never_zero(
    before: list[CounterRead], after: list[CounterRead], message: str
) -> None:
    with pytest.raises(CounterError, match=message):
        plain_counter_energy(before, after)
