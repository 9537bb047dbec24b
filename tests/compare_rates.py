"""How often comparisons of results are wrong, and find what is there: drawn figures through the real tests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llenergymeasure.domain.comparison import SIGNIFICANCE
from llenergymeasure.results.compare.welch import Contrast, contrast, holm

Noise = Callable[[random.Random], float]
"""One draw of mean 0 and standard deviation 1 or thereabouts."""


def gaussian(draw: random.Random) -> float:
    return draw.gauss(0.0, 1.0)


def heavy_tailed(draw: random.Random) -> float:
    """Student's t with three degrees of freedom."""
    return draw.gauss(0.0, 1.0) / math.sqrt(draw.gammavariate(1.5, 2.0) / 3) / math.sqrt(3)


def skewed(draw: random.Random) -> float:
    """Exponential: never much less than usual, now and then much more."""
    return draw.expovariate(1.0) - 1.0


def with_outliers(draw: random.Random) -> float:
    """One run in ten costs ten times the spread more: somebody else was on the machine."""
    return draw.gauss(0.0, 1.0) + (10.0 if draw.random() < 0.1 else 0.0)


NOISES: dict[str, Noise] = {
    "gaussian": gaussian,
    "heavy-tailed": heavy_tailed,
    "skewed": skewed,
    "outliers": with_outliers,
}

Sides = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Machine:
    """What runs of one configuration on one machine give.

    Args:
        cv_pct: Spread from run to run.
        drift_pct: Spread of a slow drift, which runs that follow each other share to `memory`.
    """

    noise: Noise = gaussian
    cv_pct: float = 2.0
    drift_pct: float = 0.0
    memory: float = 0.9

    def sides(self, draw: random.Random, counts: tuple[int, int], change_pct: float = 0.0, *, alternate: bool) -> Sides:
        """Runs of a baseline and of a candidate that differs by `change_pct`, in turn or one after the other."""
        order = _in_turn(counts) if alternate else [side for side in (0, 1) for _ in range(counts[side])]
        sides: Sides = ([], [])
        drift = draw.gauss(0.0, 1.0)
        for side in order:
            log = (self.cv_pct * self.noise(draw) + self.drift_pct * drift) / 100
            sides[side].append(math.exp(max(log, -1.0)) * (1 + side * change_pct / 100))
            drift = self.memory * drift + math.sqrt(1 - self.memory**2) * draw.gauss(0.0, 1.0)
        return sides


def _in_turn(counts: tuple[int, int]) -> list[int]:
    """The side of each run: A B A B …, in the end what is left of the longer one."""
    places = [(place, side) for side in (0, 1) for place in range(counts[side])]
    return [side for _, side in sorted(places)]


def study(
    machine: Machine,
    draw: random.Random,
    counts: tuple[int, int],
    *,
    configurations: int = 1,
    change_pct: float = 0.0,
    alternate: bool = True,
) -> list[Contrast]:
    """One comparison of two studies; the first configuration alone differs by `change_pct`."""
    drawn = (
        machine.sides(draw, counts, 0.0 if index else change_pct, alternate=alternate)
        for index in range(configurations)
    )
    return [contrast(*sides) for sides in drawn]


def gate_fails(contrasts: Sequence[Contrast], limit_pct: float) -> bool:
    """Whether the gate's rule ends such a comparison with 1."""
    return min(holm([found.p_above(limit_pct) for found in contrasts])) <= SIGNIFICANCE


def calls_different(contrasts: Sequence[Contrast]) -> bool:
    """Whether any configuration is called different."""
    return min(holm([found.p_different() for found in contrasts])) <= SIGNIFICANCE


def share(happens: Callable[[random.Random], bool], draws: int, seed: int = 20260218) -> float:
    """In what part of so many draws something happens."""
    draw = random.Random(seed)
    return sum(happens(draw) for _ in range(draws)) / draws


def most_by_chance(rate: float, draws: int) -> float:
    """What a true rate shows at most in so many draws, in all but one of a thousand tries."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / draws)
