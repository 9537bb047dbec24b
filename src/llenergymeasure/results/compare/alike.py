"""In what the runs of two configurations differ beside their settings, and which of that forbids a comparison."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from llenergymeasure.domain.comparison import Acceptable, Difference, PairComparison
from llenergymeasure.domain.readable import quantity
from llenergymeasure.exceptions import ComparisonError
from llenergymeasure.results.compare.facts import FACTS, PACKAGES
from llenergymeasure.results.compare.sides import Run

TOKENS_TOLERANCE_PCT: Final = 1.0
"""Difference of the mean tokens of a request up to which two workloads are called alike: greedy texts in bf16 are not
reproducible to the token."""

MAX_PACKAGES: Final = 5
"""Packages that a difference names; it counts the others."""


def differences_between(baseline: Sequence[Run], candidate: Sequence[Run]) -> Iterator[Difference]:
    """Every fact whose values are not the same one in all runs, those that forbid a comparison first."""
    for name, fact in FACTS.items():
        told = [[run.facts.get(name) for run in runs] for runs in (baseline, candidate)]
        values = [list(dict.fromkeys(value for value in side if value is not None)) for side in told]
        known = all(values)
        if (known and len({*values[0], *values[1]}) > 1) or (fact.must_be_known and not known):
            shown = _differing_packages(*values) if name == PACKAGES else values
            yield Difference(kind=fact.kind, what=name, baseline=shown[0], candidate=shown[1])
    yield from _token_differences(baseline, candidate)


def refuse_unlike(pairs: Iterable[PairComparison], accepted: Collection[Acceptable]) -> None:
    """Make sure that what differs between compared configurations was declared as meant.

    Raises:
        ComparisonError: It was not; names each difference and how to declare it.
    """
    found: dict[str, list[str]] = defaultdict(list)
    kinds: dict[str, None] = {}
    for pair in pairs:
        for difference in pair.differences:
            if difference.is_refused and difference.kind not in accepted:
                kinds[difference.kind] = None
                found[f"{difference.kind}: {difference}"].append(pair.name)
    if not found:
        return
    lines = [f"  - {text}" + ("" if len(found) == 1 else f" ({_of(names)})") for text, names in found.items()]
    raise ComparisonError(
        "These results are not alike, and their figures would differ for that alone:\n"
        + "\n".join(lines)
        + f"\nIf the difference is meant, say so: --accept {','.join([*accepted, *kinds])}"
    )


def _of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} configurations"


def _differing_packages(*sides: Sequence[str]) -> list[list[str]]:
    """Of each side the packages that not all environments have in the same version."""
    environments = [set(text.splitlines()) for side in sides for text in side]
    common = set.intersection(*environments)
    shown = []
    for side in sides:
        others = sorted({line for text in side for line in text.splitlines()} - common)
        more = len(others) - MAX_PACKAGES
        shown.append([*others[:MAX_PACKAGES], *([f"and {more} more"] if more > 0 else [])] or ["none besides"])
    return shown


def _token_differences(baseline: Sequence[Run], candidate: Sequence[Run]) -> Iterator[Difference]:
    for name in baseline[0].tokens:
        values = [[value for run in runs if (value := run.tokens[name]) is not None] for runs in (baseline, candidate)]
        if not all(values):
            yield Difference(kind="tokens", what=name, baseline=_means(values[0]), candidate=_means(values[1]))
            continue
        first, second = map(statistics.fmean, values)
        if abs(second - first) * 100 > TOKENS_TOLERANCE_PCT * max(first, second):
            yield Difference(kind="tokens", what=name, baseline=_means(values[0]), candidate=_means(values[1]))


def _means(values: Sequence[float]) -> list[str]:
    return [quantity(statistics.fmean(values))] if values else []
