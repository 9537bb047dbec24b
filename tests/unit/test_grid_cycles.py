"""The execution sequence repeats, alternates or shuffles, the same everywhere."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.config.grid import CycleOrder, apply_cycles
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.exceptions import ConfigError

_A, _B, _C = (ExperimentConfig(model=name) for name in "abc")
_MANY = [ExperimentConfig(model=f"m{index}") for index in range(8)]


def test_sequential_finishes_one_before_the_next() -> None:
    assert apply_cycles([_A, _B], 3, "sequential", "0" * 16) == [_A, _A, _A, _B, _B, _B]


def test_interleaved_goes_round() -> None:
    assert apply_cycles([_A, _B], 3, CycleOrder.INTERLEAVED, "0" * 16) == [_A, _B, _A, _B, _A, _B]


@given(cycles=st.integers(1, 5), seed=st.one_of(st.none(), st.integers()))
def test_shuffled_runs_each_once_per_cycle(cycles: int, seed: int | None) -> None:
    sequence = apply_cycles(_MANY, cycles, "shuffled", "abcdef0123456789", seed)
    for start in range(0, len(sequence), len(_MANY)):
        assert Counter(e.model for e in sequence[start : start + len(_MANY)]) == Counter(e.model for e in _MANY)


def test_shuffled_takes_a_fresh_order_each_cycle() -> None:
    sequence = apply_cycles(_MANY, 4, "shuffled", "abcdef0123456789")
    orders = {tuple(e.model for e in sequence[start : start + 8]) for start in range(0, 32, 8)}
    assert len(orders) == 4


def test_the_same_study_shuffles_alike_everywhere() -> None:
    """Pinned: a study shuffled on one machine must run in the same order on every other."""
    assert [e.model for e in apply_cycles(_MANY, 1, "shuffled", "abcdef0123456789")] == [
        "m7",
        "m3",
        "m5",
        "m6",
        "m1",
        "m2",
        "m0",
        "m4",
    ]


def test_a_seed_replaces_the_design_hash() -> None:
    by_hash = apply_cycles(_MANY, 2, "shuffled", "a" * 16)
    assert apply_cycles(_MANY, 2, "shuffled", "b" * 16) != by_hash
    assert apply_cycles(_MANY, 2, "shuffled", "a" * 16, shuffle_seed=7) == apply_cycles(
        _MANY, 2, "shuffled", "b" * 16, shuffle_seed=7
    )


@pytest.mark.parametrize(
    ("cycles", "order", "message"),
    [(0, "sequential", "n_cycles"), (2_000_000, "sequential", "1,000,000 is the most"), (1, "random", "cycle_order")],
)
def test_nonsense_is_refused(cycles: int, order: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_cycles([_A], cycles, order, "0" * 16)


def test_shuffling_needs_something_to_start_from() -> None:
    with pytest.raises(ConfigError, match="shuffle_seed"):
        apply_cycles([_A, _B, _C], 1, "shuffled", None)
