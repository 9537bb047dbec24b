"""One figure of a configuration on both sides: ratio, interval, and the test that it is no accident."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.domain.comparison import SIGNIFICANCE, FigureComparison, FigureName, Outcome, SideFigure
from llenergymeasure.results.compare.sides import Run, Stated
from llenergymeasure.results.compare.welch import (
    LEAST_RUNS,
    Contrast,
    as_pct,
    contrast,
    geometric_mean,
    holm,
    log_spread_pct,
)

MORE_RUNS: Final = "run each side with --cycles 3 or more"

_NOT_MEASURED: Final = {
    "energy_per_token_j": "energy per token was not measured",
    "tokens_per_second": "there is no throughput",
}


@dataclass(frozen=True, slots=True)
class Tested:
    """A figure compared, and what further tests of it need; `None`: too few runs for any."""

    comparison: FigureComparison
    contrast: Contrast | None = None


def compare_figure(figure: FigureName, baseline: Sequence[Run], candidate: Sequence[Run]) -> Tested:
    """Compare one figure over the runs of both sides, at least one each."""
    first, second = (_side_figure(figure, runs) for runs in (baseline, candidate))
    if first is None or second is None:
        where = "in the candidate" if first else "in the baseline" if second else "on either side"
        reason = f"{_NOT_MEASURED[figure]} {where}"
        return Tested(FigureComparison(figure=figure, baseline=first, candidate=second, reason=reason))
    log_ratio = math.log(second.mean / first.mean)
    compared = FigureComparison(figure=figure, baseline=first, candidate=second, change_pct=as_pct(log_ratio))
    stated = _Together.of(baseline, candidate) if figure == "energy_per_token_j" else None
    if min(first.runs, second.runs) < LEAST_RUNS:
        return Tested(_of_single_runs(compared, log_ratio, stated))
    systematic_pct = stated.repeated_pct if stated is not None else 0.0
    found = contrast(first.values, second.values, systematic_pct)
    low, high = found.interval_pct()
    tested = {
        "ci95_low_pct": low,
        "ci95_high_pct": high,
        "interval": "welch",
        "systematic_pct": systematic_pct,
        "degrees_of_freedom": found.degrees_of_freedom,
        "p_value": found.p_different(),
    }
    return Tested(compared.model_copy(update=tested), found)


def corrected(tests: Sequence[Tested]) -> Iterator[Tested]:
    """The tests of one figure, with what can be said when all of them are looked at together."""
    known = [test for test in tests if test.comparison.p_value is not None]
    adjusted = iter(holm([test.comparison.p_value or 0.0 for test in known]))
    for test in tests:
        if test.comparison.p_value is None:
            yield test
            continue
        p = next(adjusted)
        said = {"p_adjusted": p, "outcome": _outcome(p, test.comparison.change_pct or 0.0)}
        yield Tested(test.comparison.model_copy(update=said), test.contrast)


def share_boards(baseline: Sequence[Run], candidate: Sequence[Run]) -> bool:
    """Whether all runs are known to have used the same devices, so that their sensors' gains cancel."""
    boards = {run.boards for run in (*baseline, *candidate)}
    return len(boards) == 1 and None not in boards


@dataclass(frozen=True, slots=True)
class _Together:
    """95 % half-widths of the change of an energy, in per cent, from what both sides state of theirs.

    Args:
        repeated_pct: Of what repeats do not show.
        single_pct: Of one run against another.
    """

    repeated_pct: float
    single_pct: float

    @classmethod
    def of(cls, baseline: Sequence[Run], candidate: Sequence[Run]) -> _Together | None:
        """`None` where a side states nothing. Errors of two sides are independent; gains of the same boards cancel."""
        sides = [[run.stated for run in runs if run.stated is not None] for runs in (baseline, candidate)]
        if not all(sides):
            return None
        gains = [] if share_boards(baseline, candidate) else [_mean(side, lambda run: run.gain) for side in sides]
        return cls(
            math.hypot(*gains, *(_mean(side, lambda run: run.repeated) for side in sides)),
            math.hypot(*gains, *(_mean(side, lambda run: run.comparative) for side in sides)),
        )


def _mean(stated: Sequence[Stated], part: Callable[[Stated], float]) -> float:
    return statistics.fmean(map(part, stated))


def _side_figure(figure: FigureName, runs: Sequence[Run]) -> SideFigure | None:
    values = [value for run in runs if (value := run.figures[figure]) is not None]
    if not values:
        return None
    return SideFigure(runs=len(values), mean=geometric_mean(values), cv_pct=log_spread_pct(values), values=values)


def _of_single_runs(compared: FigureComparison, log_ratio: float, stated: _Together | None) -> FigureComparison:
    """Without spread there is the stated uncertainty at most, and no test."""
    sides = {"baseline": compared.baseline, "candidate": compared.candidate}
    single = [name for name, side in sides.items() if side is not None and side.runs < LEAST_RUNS]
    where = "each" if len(single) == 2 else f"in the {single[0]}"
    said: dict[str, object] = {"reason": f"one run {where} tells nothing of the spread; {MORE_RUNS}"}
    if stated is not None:
        half_width = math.log1p(stated.single_pct / 100)
        said |= {
            "ci95_low_pct": as_pct(log_ratio - half_width),
            "ci95_high_pct": as_pct(log_ratio + half_width),
            "interval": "measurement",
        }
    return compared.model_copy(update=said)


def _outcome(p_adjusted: float, change_pct: float) -> Outcome:
    if p_adjusted > SIGNIFICANCE:
        return "not_told_apart"
    return "higher" if change_pct > 0 else "lower"
