"""Which configuration of the baseline belongs to which of the candidate.

Equal configurations belong together: the same study on two releases. Where no two are equal, those do that are equal
but for settings that have one value here and another one there: a study in fp16 against one in bf16.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from llenergymeasure.domain.comparison import SettingDifference
from llenergymeasure.exceptions import ComparisonError
from llenergymeasure.results.compare.sides import Configuration, Side
from llenergymeasure.results.export import BATCH_SETTING

BACKEND: Final = "backend"

TOLD_BY_PYTORCH: Final = "generation"
"""A section of what that engine alone tells of itself, outside its own."""

Pair = tuple[Configuration, Configuration]


@dataclass(frozen=True, slots=True)
class Pairing:
    """Pairs in the baseline's order, and what has no counterpart."""

    pairs: tuple[Pair, ...]
    only_baseline: tuple[Configuration, ...]
    only_candidate: tuple[Configuration, ...]


def pair_up(baseline: Side, candidate: Side, ignore: Collection[str] = ()) -> Pairing:
    """Pair the configurations of two sides.

    Args:
        ignore: Settings or sections that may differ within a pair; nothing is guessed then.

    Raises:
        ComparisonError: There is no pair, or several configurations of a side are equal but for what may differ.
    """
    first, second = baseline.configurations, candidate.configurations
    _refuse_unknown(ignore, baseline, candidate)
    if not ignore and not first.keys() & second.keys():
        ignore = _what_tells_sides_apart(baseline, candidate)
        if not ignore:
            raise ComparisonError(
                f"{baseline.label} and {candidate.label} have no configuration in common. Name the settings that may "
                "differ between them: --ignore precision,backend"
            )
    if ignore:
        first, second = _by_key(baseline, ignore), _by_key(candidate, ignore)
    pairs = tuple((configuration, second[key]) for key, configuration in first.items() if key in second)
    if not pairs:
        raise ComparisonError(
            f"{baseline.label} and {candidate.label} have no configuration in common, not even apart from "
            f"{', '.join(sorted(ignore))}. Name every setting that may differ between them with --ignore."
        )
    return Pairing(
        pairs,
        tuple(configuration for key, configuration in first.items() if key not in second),
        tuple(configuration for key, configuration in second.items() if key not in first),
    )


def setting_differences(baseline: Configuration, candidate: Configuration) -> Iterator[SettingDifference]:
    """Settings in effect that are not the same in both."""
    first, second = baseline.settings, candidate.settings
    for path in dict.fromkeys((*first, *second)):
        if first.get(path) != second.get(path):
            yield SettingDifference(path=path, baseline=first.get(path), candidate=second.get(path))


def _refuse_unknown(ignore: Collection[str], baseline: Side, candidate: Side) -> None:
    known = baseline.settings | candidate.settings
    for name in ignore:
        if not any(path == name or path.startswith(f"{name}.") for path in known):
            raise ComparisonError(f"--ignore {name}: no such setting. There are {', '.join(sorted(known))}.")


def _what_tells_sides_apart(baseline: Side, candidate: Side) -> set[str]:
    """Settings of which either side has one value, and not the same."""
    paths = baseline.settings | candidate.settings
    sides = [
        [configuration.settings for configuration in side.configurations.values()] for side in (baseline, candidate)
    ]
    values = {path: [{settings.get(path) for settings in side} for side in sides] for path in paths}
    return {path for path, (one, other) in values.items() if len(one) == len(other) == 1 and one != other}


def _by_key(side: Side, ignore: Collection[str]) -> Mapping[str, Configuration]:
    found: dict[str, Configuration] = {}
    for configuration in side.configurations.values():
        twin = found.setdefault(_key(configuration, ignore), configuration)
        if twin is not configuration:
            raise ComparisonError(
                f"{side.label} has several configurations that are equal but for {', '.join(sorted(ignore))}: "
                f"{twin.name}, and {configuration.name}. Name fewer settings with --ignore."
            )
    return found


def _key(configuration: Configuration, ignore: Collection[str]) -> str:
    """What is left of a configuration; where engines may differ, their sections go and only the batch stays."""
    sections = (*BATCH_SETTING, TOLD_BY_PYTORCH) if BACKEND in ignore else ()
    left = {
        path: value
        for path, value in configuration.settings.items()
        if not any(path == name or path.startswith(f"{name}.") for name in (*ignore, *sections))
    }
    keeps_batch = sections and not {f"{name}.{batch}" for name, batch in BATCH_SETTING.items()} & set(ignore)
    return json.dumps([left, configuration.batch if keeps_batch else None], sort_keys=True)
