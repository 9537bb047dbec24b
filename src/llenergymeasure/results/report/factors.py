"""What each setting of a study does by itself: pairs of configurations that differ in it and in nothing else."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llenergymeasure.domain.identity import hash_of_settings
from llenergymeasure.domain.study import ConfigurationStatistics, CycleStatistics
from llenergymeasure.results.export import by_path
from llenergymeasure.results.report.repeat import without_unset
from llenergymeasure.results.student_t import student_t_quantile

FIGURES: Final = ("energy_per_token_j", "tokens_per_second")

_LARGEST_LOG: Final = 30.0
"""A change beyond this is no number that anybody reads."""

_Pair = tuple[CycleStatistics, CycleStatistics]

Settings = Mapping[str, Any]
"""A configuration by dotted paths."""


@dataclass(frozen=True, slots=True)
class Change:
    """A figure at one level over that at the first level, all else equal.

    Args:
        mean: Geometric mean over the surroundings in which both were measured.
        low, high: The extremes among them.
        pairs: How many surroundings there are.
        ci95_low, ci95_high: The 95 % interval of `mean` by the spread of the cycles; `None` where there is none.
    """

    mean: float
    low: float
    high: float
    pairs: int
    ci95_low: float | None = None
    ci95_high: float | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """One value of a factor; a change is `None` where no pair tells it."""

    label: str
    energy: Change | None
    speed: Change | None


@dataclass(frozen=True, slots=True)
class Factor:
    """A setting that a study varies, or several that it varies together."""

    name: str
    levels: tuple[Level, ...]


def factors(experiments: Sequence[Mapping[str, Any]], measured: Sequence[ConfigurationStatistics]) -> list[Factor]:
    """The effect of each setting that the study varied, as far as pairs tell it.

    Args:
        experiments: The study's configurations, as its manifest has them.
    """
    asked = [without_unset(config) for config in experiments]
    settings = {hash_of_settings(config): dict(by_path(config)) for config in asked}
    found = {entry.measurement_config_hash: entry for entry in measured}
    names = _varying(list(settings.values()))
    return [_factor(own, names, settings, found) for own in names]


def _varying(settings: Sequence[Settings]) -> list[tuple[str, ...]]:
    """The settings that differ; those that differ together are one."""
    together: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for path in dict.fromkeys(path for one in settings for path in one):
        seen: dict[str, int] = {}
        places = tuple(seen.setdefault(_key(one, path), len(seen)) for one in settings)
        if len(seen) > 1:
            together[places].append(path)
    return [tuple(paths) for paths in together.values()]


def _key(settings: Settings, path: str) -> str:
    return json.dumps(settings.get(path), sort_keys=True)


def _factor(
    own: tuple[str, ...],
    names: Sequence[tuple[str, ...]],
    settings: Mapping[str, Settings],
    found: Mapping[str, ConfigurationStatistics],
) -> Factor:
    others = [path for paths in names if paths != own for path in paths]
    values = _in_order([one.get(own[0]) for one in settings.values()])
    surroundings: dict[tuple[str, ...], dict[str, ConfigurationStatistics]] = defaultdict(dict)
    for config_hash, one in settings.items():
        if config_hash in found:
            around = tuple(_key(one, path) for path in others)
            surroundings[around][_key(one, own[0])] = found[config_hash]
    first = json.dumps(values[0], sort_keys=True)
    levels = []
    for value in values:
        pairs = [
            (group[first], group[key])
            for group in surroundings.values()
            if first in group and (key := json.dumps(value, sort_keys=True)) in group
        ]
        levels.append(Level(_label(value), *(_change(pairs, figure) for figure in FIGURES)))
    return Factor(" with ".join(own), tuple(levels))


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers by size, others as they come; what is not set comes first."""
    once = list({json.dumps(value, sort_keys=True): value for value in values}.values())
    unset, rest = [value for value in once if value is None], [value for value in once if value is not None]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in rest)
    return unset + (sorted(rest) if numbers else rest)


def _label(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _change(pairs: Sequence[tuple[ConfigurationStatistics, ConfigurationStatistics]], figure: str) -> Change | None:
    compared = list(_compared(pairs, figure))
    if not compared:
        return None
    ratios = [new.mean / old.mean for old, new in compared]
    mean = statistics.geometric_mean(ratios)
    interval = _interval(mean, compared) if compared[0][0] is not compared[0][1] else (None, None)
    return Change(mean, min(ratios), max(ratios), len(ratios), *interval)


def _interval(mean: float, compared: Sequence[_Pair]) -> tuple[float, float] | tuple[None, None]:
    """Of the mean of ratios: their logarithms' errors, each of cycles that are independent, with Welch's freedom."""
    sides = [side for pair in compared for side in pair]
    if any(side.std is None for side in sides):
        return None, None
    parts = [((side.std or 0.0) / side.mean) ** 2 / side.count for side in sides]
    variance = math.fsum(parts)
    if not variance:
        return None, None
    freedom = variance**2 / math.fsum(part**2 / (side.count - 1) for part, side in zip(parts, sides, strict=True))
    half_width = student_t_quantile(0.975, freedom) * math.sqrt(variance) / len(compared)
    widest = min(half_width, _LARGEST_LOG)
    return mean * math.exp(-widest), mean * math.exp(widest)


def _compared(pairs: Sequence[tuple[ConfigurationStatistics, ConfigurationStatistics]], figure: str) -> Iterator[_Pair]:
    for before, after in pairs:
        old: CycleStatistics | None = getattr(before, figure)
        new: CycleStatistics | None = getattr(after, figure)
        alike = figure != "energy_per_token_j" or before.estimated == after.estimated
        if alike and old is not None and new is not None and old.mean > 0 and new.mean > 0:
            yield old, new


def strength(factor: Factor) -> float:
    """How much the factor moves energy, or speed where there is no energy: the widest span on a logarithmic scale."""
    for figure in ("energy", "speed"):
        means = [change.mean for level in factor.levels if (change := getattr(level, figure)) is not None]
        if len(means) > 1:
            return math.log(max(means) / min(means))
    return 0.0
