"""Stated 95 % intervals against the truth, on boards, loads, phases and gains drawn at random.

The estimators see counter reads and samples, never the script. A few hundred draws here; thousands in
benchmarks/energy_accuracy.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from tests.nvml.loads import ALL_LOADS, SAMPLED_LOADS, Load
from tests.nvml.virtual import Counter
from tests.nvml.virtual_run import VirtualWindow, by_nvml, quantile, random_board, run_window
from tests.nvml.waveform import constant

from llenergymeasure.core.energy.integrate import integrate_power
from llenergymeasure.core.energy.uncertainty import (
    IdleEnergy,
    counter_component,
    gain_component,
    integral_components,
    stated_uncertainty,
)
from llenergymeasure.domain.energy import BudgetComponent, absolute_half_width, comparative_half_width
from llenergymeasure.domain.warnings import WarningCode

GAIN_PCT = 5.0
DRAWS = 120


@dataclass(frozen=True)
class Draw:
    error_j: float
    half_width_j: float


def _counter(window: VirtualWindow) -> tuple[float, tuple[BudgetComponent, ...]]:
    fused = window.fused()
    return fused.energy_j, (counter_component(fused),)


def _integral(window: VirtualWindow) -> tuple[float, tuple[BudgetComponent, ...]]:
    times, power = [t for t, _ in window.samples], [w for _, w in window.samples]
    energy_j = integrate_power(times, power, window.start_s, window.end_s)
    return energy_j, integral_components(times, power, window.start_s, window.end_s, window.sampling)


def _draws(
    architecture: str,
    method: Callable[[VirtualWindow], tuple[float, tuple[BudgetComponent, ...]]],
    *,
    loads: Sequence[Load],
    random_gain: bool,
    seed: int,
) -> list[Draw]:
    draw = random.Random(seed)
    results = []
    for i in range(DRAWS):
        gain = draw.gauss(1.0, GAIN_PCT / 100.0 / 1.96) if random_gain else 1.0
        board = random_board(architecture, loads[i % len(loads)](draw), draw, gain=gain)
        board.counter = board.counter or Counter(phase_s=draw.uniform(0.0, 0.1))
        window = run_window(board, draw.uniform(0.5, 8.0), draw)
        energy_j, parts = method(window)
        budget = (*parts, gain_component(energy_j, GAIN_PCT))
        half_width_j = absolute_half_width(budget) if random_gain else comparative_half_width(budget)
        results.append(Draw(abs(energy_j - window.true_j), half_width_j))
    return results


def _check(draws: Sequence[Draw], *, only_gain: bool = False) -> None:
    """`only_gain`: hardly anything but the gain counts, whose interval holds the truth in 95 % of draws, not in more:
    by chance it may miss some more, two and a half standard deviations of them."""
    covered = sum(d.error_j <= d.half_width_j for d in draws)
    by_chance = 2.5 * math.sqrt(0.95 * 0.05 * len(draws)) if only_gain else 0.0
    assert covered >= 0.95 * len(draws) - by_chance
    # Not wider than twice the errors that really occur.
    assert sum(d.half_width_j for d in draws) / len(draws) <= 2.0 * quantile([d.error_j for d in draws], 0.95)


@pytest.mark.parametrize("architecture", ["volta", "turing", "a100", "ampere", "hopper"])
def test_the_counters_comparative_interval_covers_and_is_not_too_wide(architecture: str) -> None:
    _check(_draws(architecture, _counter, loads=ALL_LOADS, random_gain=False, seed=21))


@pytest.mark.parametrize("architecture", ["volta", "hopper"])
def test_the_counters_absolute_interval_covers_gains_drawn_at_random(architecture: str) -> None:
    _check(_draws(architecture, _counter, loads=ALL_LOADS, random_gain=True, seed=22))


@pytest.mark.parametrize("architecture", ["pascal", "turing", "hopper"])
def test_the_integrals_comparative_interval_covers_and_is_not_too_wide(architecture: str) -> None:
    _check(_draws(architecture, _integral, loads=SAMPLED_LOADS, random_gain=False, seed=23))


def test_the_integrals_absolute_interval_covers_gains_drawn_at_random() -> None:
    _check(_draws("pascal", _integral, loads=SAMPLED_LOADS, random_gain=True, seed=24))


@pytest.mark.parametrize("architecture", ["volta", "turing", "a100", "ampere", "hopper"])
@pytest.mark.parametrize(("follows_sensor", "known"), [(True, None), (False, None), (True, True), (False, False)])
def test_the_meters_interval_covers_both_kinds_of_counter_unless_it_is_known(
    architecture: str, follows_sensor: bool, known: bool | None
) -> None:
    """A counter of true power, or one that adds up the sensor's readings and misses what that misses."""
    draw, results = random.Random(27), []
    for i in range(DRAWS // 2):
        board = random_board(architecture, SAMPLED_LOADS[i % len(SAMPLED_LOADS)](draw), draw)
        assert board.counter is not None
        board.counter = replace(board.counter, follows_sensor=follows_sensor)
        window = run_window(board, draw.uniform(1.0, 8.0), draw)
        energy = by_nvml(window, board, follows=known)
        assert energy.total_j is not None
        results.append(Draw(abs(energy.total_j - window.true_j), comparative_half_width(energy.components)))
    assert sum(d.error_j <= d.half_width_j for d in results) >= 0.95 * len(results)


@pytest.mark.parametrize("period_s", [0.02, 0.5, 1.0])
def test_the_meters_interval_covers_counters_that_move_more_often_and_less(period_s: float) -> None:
    """How often a board's counter moves is learnt from the board, and where that takes too long, that it does."""
    draw, covered = random.Random(21), 0
    for i in range(DRAWS):
        board = random_board("hopper", ALL_LOADS[i % len(ALL_LOADS)](draw), draw)
        board.counter = Counter(period_s=period_s, phase_s=draw.uniform(0.0, period_s))
        window = run_window(board, draw.uniform(0.2, 8.0), draw)
        energy = by_nvml(window, board)
        if energy.total_j is not None:
            covered += abs(energy.total_j - window.true_j) <= comparative_half_width(energy.components)
        else:
            covered += any(note.code is WarningCode.ENERGY_METHODS_DISAGREE for note in energy.notes)
    assert covered >= 0.95 * DRAWS


def test_only_a_counter_that_is_known_to_count_all_has_the_narrow_interval() -> None:
    draw = random.Random(28)
    board = random_board("hopper", ALL_LOADS[0](draw), draw)
    window = run_window(board, 5.0, draw)
    budgets = {known: by_nvml(window, board, follows=known) for known in (None, True, False)}
    kinds = {known: {part.kind for part in energy.components} for known, energy in budgets.items()}
    assert kinds[False] == {"gain", "counter_resolution"}
    assert kinds[None] == kinds[True] == {*kinds[False], "sampling", "aliasing", "sensor"}
    assert len({energy.total_j for energy in budgets.values()}) == 1
    assert len({energy.audit.bound_pct for energy in budgets.values() if energy.audit}) == 1
    (note,) = (part.note for part in budgets[None].components if part.kind == "sampling")
    assert note.startswith("in case the counter adds up what the sensor sees: ")


@pytest.mark.parametrize("random_gain", [True, False], ids=["absolute", "comparative"])
def test_the_interval_of_energy_above_idle_covers_it_and_is_not_too_wide(random_gain: bool) -> None:
    """Idle power is read with the gain of the window, so of the gain's error only the part of what is left counts."""
    draw, results = random.Random(26), []
    for i in range(4 * DRAWS):
        gain = draw.gauss(1.0, GAIN_PCT / 100.0 / 1.96) if random_gain else 1.0
        idle_w = draw.uniform(50.0, 150.0)
        idle = run_window(random_board("hopper", constant(idle_w), draw, gain=gain), 5.0, draw)
        board = random_board("hopper", ALL_LOADS[i % len(ALL_LOADS)](draw), draw, gain=gain)
        window = run_window(board, draw.uniform(1.0, 8.0), draw)
        (idle_j, idle_parts), (energy_j, parts) = _counter(idle), _counter(window)
        idle_s, window_s = idle.end_s - idle.start_s, window.end_s - window.start_s
        subtracted = IdleEnergy(idle_j / idle_s * window_s, comparative_half_width(idle_parts) / idle_s * window_s)
        budget = (*parts, gain_component(energy_j, GAIN_PCT))
        stated = stated_uncertainty(energy_j, budget, idle=subtracted)
        assert stated is not None
        half_width_j = stated.absolute_adjusted_j if random_gain else stated.comparative_adjusted_j
        assert half_width_j is not None
        error_j = abs(energy_j - subtracted.energy_j - (window.true_j - idle_w * window_s))
        results.append(Draw(error_j, half_width_j))
    _check(results, only_gain=random_gain)
