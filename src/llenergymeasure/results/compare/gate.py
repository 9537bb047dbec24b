"""The gate: whether a candidate is worse than its baseline by more than what is let through.

A candidate that is worse by exactly the limit is called worse once in twenty times, an equal one more rarely, over all
of its configurations together (Holm). What was not shown to be worse is let through; how large a change the runs could
have shown is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.domain.comparison import (
    SIGNIFICANCE,
    CandidateComparison,
    FigureComparison,
    FigureName,
    GateOutcome,
    GateTest,
    GateVerdict,
)
from llenergymeasure.domain.readable import probability, quantity
from llenergymeasure.exceptions import ConfigError
from llenergymeasure.results.compare.figures import Tested
from llenergymeasure.results.compare.welch import Contrast, holm

WHAT: Final[Mapping[FigureName, str]] = {
    "energy_per_token_j": "joules per output token",
    "tokens_per_second": "output tokens per second",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Changes for the worse that are let through, in per cent; `None`: the figure is not looked at."""

    more_energy_pct: float | None = None
    slower_pct: float | None = None

    def __post_init__(self) -> None:
        if self.more_energy_pct is not None and not 0 <= self.more_energy_pct < float("inf"):
            raise ConfigError(f"--fail-if-worse takes per cent from 0 on, not {self.more_energy_pct:g}.")
        if self.slower_pct is not None and not 0 <= self.slower_pct < 100:
            raise ConfigError(f"--fail-if-slower takes per cent from 0 to below 100, not {self.slower_pct:g}.")

    @property
    def is_set(self) -> bool:
        """Whether there is any."""
        return self.more_energy_pct is not None or self.slower_pct is not None

    def of(self, figure: FigureName) -> float | None:
        """The limit of one figure."""
        return self.more_energy_pct if figure == "energy_per_token_j" else self.slower_pct


def gate_tests(tests: Sequence[Tested], limits: Limits) -> list[GateTest | None]:
    """The gate's test of each compared figure, `None` for those without a limit; the error holds over all together."""
    begun = [_Worsening.of(test, limits) for test in tests]
    decidable = [entry for entry in begun if entry is not None and entry.contrast is not None]
    adjusted = holm([entry.p_value for entry in decidable])
    made = {id(entry): entry.tested(p, len(decidable)) for entry, p in zip(decidable, adjusted, strict=True)}
    return [None if entry is None else made.get(id(entry), entry.undecided()) for entry in begun]


def verdict(compared: Sequence[CandidateComparison], missing_matters: bool) -> GateVerdict:
    """The decision over all tests: worse where one is, else undecided where one could not be made.

    Args:
        missing_matters: Whether nothing is decided where a candidate lacks a configuration of the baseline.
    """
    reasons: dict[GateOutcome, list[str]] = {"worse": [], "undecided": [], "not_worse": []}
    for entry in compared:
        where = f"{entry.candidate.path}, " if len(compared) > 1 else ""
        for pair in entry.pairs:
            for figure in pair.figures:
                if figure.gate is not None:
                    reasons[figure.gate.outcome].append(f"{where}{pair.name}: {_told(figure, figure.gate)}")
        if missing_matters and entry.only_baseline:
            reasons["undecided"].append(
                f"{entry.candidate.path} lacks {'; '.join(entry.only_baseline)}. Measure what is missing, or let it "
                "through with --accept unpaired."
            )
    outcome = next(outcome for outcome, found in reasons.items() if found or outcome == "not_worse")
    return GateVerdict(outcome=outcome, reasons=[*reasons["worse"], *reasons["undecided"]])


@dataclass(frozen=True, slots=True)
class _Worsening:
    """A figure with a limit, turned so that up is worse.

    Args:
        contrast: `None`: there are too few runs for a test.
        growth_pct: The limit as growth: 20 % fewer tokens per second are 25 % more time.
    """

    limit_pct: float
    growth_pct: float
    is_speed: bool
    contrast: Contrast | None
    reason: str | None

    @classmethod
    def of(cls, test: Tested, limits: Limits) -> _Worsening | None:
        comparison, contrast = test.comparison, test.contrast
        limit_pct, is_speed = limits.of(comparison.figure), comparison.figure == "tokens_per_second"
        if limit_pct is None:
            return None
        growth_pct = 100 * (1 / (1 - limit_pct / 100) - 1) if is_speed else limit_pct
        turned = contrast.inverse() if contrast is not None and is_speed else contrast
        return cls(limit_pct, growth_pct, is_speed, turned, comparison.reason)

    @property
    def p_value(self) -> float:
        return 1.0 if self.contrast is None else self.contrast.p_above(self.growth_pct)

    def tested(self, p_adjusted: float, tests: int) -> GateTest:
        found_pct = None if self.contrast is None else self.contrast.finds_pct(self.growth_pct, tests)
        if found_pct is not None and self.is_speed:
            found_pct = 100 * (1 - 1 / (1 + found_pct / 100))
        return GateTest(
            limit_pct=self.limit_pct,
            outcome="worse" if p_adjusted <= SIGNIFICANCE else "not_worse",
            p_value=self.p_value,
            p_adjusted=p_adjusted,
            finds_pct=found_pct,
        )

    def undecided(self) -> GateTest:
        return GateTest(limit_pct=self.limit_pct, outcome="undecided", reason=self.reason)


def _told(comparison: FigureComparison, gate: GateTest) -> str:
    if gate.reason is not None:
        return gate.reason
    change_pct = comparison.change_pct or 0.0
    direction, p = "more" if change_pct > 0 else "fewer", probability(gate.p_adjusted or 0.0)
    return (
        f"{quantity(abs(change_pct))} % {direction} {WHAT[comparison.figure]} "
        f"(limit {gate.limit_pct:g} %, p {p if p.startswith('<') else f'= {p}'})"
    )
