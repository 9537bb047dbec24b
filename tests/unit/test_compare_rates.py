"""How often a comparison is wrong, by simulation: A/A runs through the real tests, thousands of them."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest

from compare_rates import NOISES, Machine, calls_different, gate_fails, most_by_chance, share, study

DRAWS = 4000
STATED = 0.05
PAGE = (Path(__file__).parents[2] / "docs" / "comparing-results.md").read_text(encoding="utf-8")


def told(part: str) -> dict[str, list[str]]:
    """The rows of a table of the documentation, by their first cell."""
    table = PAGE.partition(f"<!-- {part} -->")[2].partition(f"<!-- end {part} -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return {first: cells for first, *cells in rows}


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (5, 5), (10, 10), (3, 10), (5, 3)], ids=str)
@pytest.mark.parametrize("noise", NOISES)
def test_the_gate_fails_equal_candidates_in_at_most_one_of_twenty(noise: str, counts: tuple[int, int]) -> None:
    """With a limit of 0, which is the hardest: any other lets more through."""
    machine = Machine(NOISES[noise])
    rate = share(lambda draw: gate_fails(study(machine, draw, counts), 0.0), DRAWS)
    assert rate <= most_by_chance(STATED, DRAWS)
    documented = dict(zip(NOISES, told("rates")[f"{counts[0]}, {counts[1]}"], strict=True))
    assert 100 * rate == pytest.approx(float(documented[noise]), abs=0.3)


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (5, 5)], ids=str)
@pytest.mark.parametrize("noise", NOISES)
def test_so_it_does_with_ten_configurations_together(noise: str, counts: tuple[int, int]) -> None:
    machine, draws = Machine(NOISES[noise]), DRAWS // 5
    rate = share(lambda draw: gate_fails(study(machine, draw, counts, configurations=10), 0.0), draws)
    assert rate <= most_by_chance(STATED, draws)


def test_without_a_correction_ten_configurations_would_fail_one_candidate_in_four() -> None:
    """The test above can fail."""
    machine, draws = Machine(), DRAWS // 5
    uncorrected = share(
        lambda draw: any(gate_fails([test], 0.0) for test in study(machine, draw, (5, 5), configurations=10)), draws
    )
    assert uncorrected > 0.2


@pytest.mark.parametrize("noise", NOISES)
def test_equal_studies_are_called_different_in_at_most_one_of_twenty(noise: str) -> None:
    machine = Machine(NOISES[noise])
    rate = share(lambda draw: calls_different(study(machine, draw, (3, 3), configurations=2)), DRAWS)
    assert rate <= most_by_chance(STATED, DRAWS)


def test_a_candidate_exactly_at_the_limit_fails_in_at_most_one_of_twenty() -> None:
    rate = share(lambda draw: gate_fails(study(Machine(), draw, (5, 5), change_pct=5.0), 5.0), DRAWS)
    assert 0.02 <= rate <= most_by_chance(STATED, DRAWS)


def test_a_drift_that_both_sides_meet_in_turn_does_no_harm_and_one_between_them_does() -> None:
    machine = Machine(cv_pct=0.5, drift_pct=2.0)
    in_turn = share(lambda draw: gate_fails(study(machine, draw, (5, 5), alternate=True), 0.0), DRAWS)
    after = share(lambda draw: gate_fails(study(machine, draw, (5, 5), alternate=False), 0.0), DRAWS)
    with_limit = share(lambda draw: gate_fails(study(machine, draw, (5, 5), alternate=False), 5.0), DRAWS)
    assert in_turn <= most_by_chance(STATED, DRAWS)
    assert after > 0.2
    assert with_limit <= most_by_chance(STATED, DRAWS)


@pytest.mark.parametrize(("cycles", "configurations"), [(3, 1), (5, 1), (10, 1), (3, 10), (5, 10)])
def test_the_change_that_is_said_to_be_found_is_found_in_four_cases_of_five(cycles: int, configurations: int) -> None:
    machine, counts = Machine(cv_pct=2.0), (cycles, cycles)
    spreads = study(machine, random.Random(1), counts, configurations=1000)
    change_pct = statistics.median(spread.finds_pct(5.0, configurations) for spread in spreads)

    def found(draw: random.Random) -> bool:
        drawn = study(machine, draw, counts, configurations=configurations, change_pct=change_pct)
        return gate_fails(drawn, 5.0)

    assert 0.77 <= share(found, DRAWS) <= 0.95


@pytest.mark.parametrize("configurations", [1, 10])
@pytest.mark.parametrize("cycles", [3, 5, 10])
def test_the_documentation_tells_the_power_that_there_is(cycles: int, configurations: int) -> None:
    machine, counts = Machine(cv_pct=1.0), (cycles, cycles)
    change_pct = float(told("power")[str(cycles)][1].split(", ")[configurations > 1])

    def found(draw: random.Random) -> bool:
        return gate_fails(study(machine, draw, counts, configurations=configurations, change_pct=change_pct), 0.0)

    assert share(found, DRAWS) == pytest.approx(0.8, abs=0.04)
