"""The comparison of results: what differs between two sides, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from pydantic import Field

from llenergymeasure.constants import RESULT_SCHEMA_VERSION, VERSION
from llenergymeasure.domain.base import Moment, Record, SchemaVersion, empty, optional

Refused = Literal["hardware", "limits", "dataset", "tokens", "meter", "window"]
"""Kinds of difference that make figures incomparable unless somebody says that they are meant."""

DifferenceKind = Literal["hardware", "limits", "dataset", "tokens", "meter", "window", "software"]

Acceptable = Literal["hardware", "limits", "dataset", "tokens", "meter", "window", "unpaired"]
"""What `--accept` takes."""

FigureName = Literal["energy_per_token_j", "tokens_per_second"]

IntervalKind = Literal["welch", "measurement"]
"""From the spread of the cycles and what they do not show; from the stated uncertainty of single runs alone."""

Outcome = Literal["higher", "lower", "not_told_apart", "not_tested"]

GateOutcome = Literal["worse", "not_worse", "undecided"]

SIGNIFICANCE: Final = 0.05
"""Probability, over a whole family of tests, of calling something different that is not."""


class SettingDifference(Record):
    """A setting in which two compared configurations differ."""

    path: str = Field(description="Dotted path of the setting.")
    baseline: str | None = optional("Its value as JSON; null: not set.")
    candidate: str | None = optional("Its value as JSON; null: not set.")


class Difference(Record):
    """Something in which the runs of two sides differ beside the settings, or that one side does not tell."""

    kind: DifferenceKind = Field(description="What kind of fact it is.")
    what: str = Field(description="The fact.")
    baseline: list[str] = Field(description="Every value that the baseline's runs have; empty: not recorded.")
    candidate: list[str] = Field(description="Every value that the candidate's runs have; empty: not recorded.")

    @property
    def is_known(self) -> bool:
        """Whether both sides tell it, so that it is a difference and not a gap in the records."""
        return bool(self.baseline and self.candidate)

    @property
    def is_refused(self) -> bool:
        """Whether figures are not compared over it unless it is accepted."""
        return self.is_known and self.kind != "software"

    def __str__(self) -> str:
        told = (", ".join(values) or "not recorded" for values in (self.baseline, self.candidate))
        return f"{self.what}: {' against '.join(told)}"


class SideFigure(Record):
    """One figure of one side, in the unit that its name tells."""

    runs: int = Field(ge=1, description="Runs that have the figure.")
    mean: float = Field(description="Geometric mean over the runs.")
    cv_pct: float | None = optional("Standard deviation of its logarithm, in per cent; null for one run.")
    values: list[float] = Field(description="The figure of each run.")


class GateTest(Record):
    """Whether a figure is worse by more than a limit."""

    limit_pct: float = Field(ge=0, description="Change for the worse that is let through, in per cent.")
    outcome: GateOutcome = Field(description="`undecided`: see `reason`.")
    p_value: float | None = optional("Probability of so much under a change of exactly the limit.")
    p_adjusted: float | None = optional("The same, corrected for all tests of the gate (Holm).")
    finds_pct: float | None = optional(
        "True change for the worse, in per cent, that runs as spread as these find in four cases of five."
    )
    reason: str | None = optional("Why nothing could be decided.")


class FigureComparison(Record):
    """One figure of a configuration on both sides."""

    figure: FigureName = Field(description="Which figure.")
    baseline: SideFigure | None = optional("Null: not measured.")
    candidate: SideFigure | None = optional("Null: not measured.")
    change_pct: float | None = optional("Candidate against baseline, in per cent of the baseline.")
    ci95_low_pct: float | None = optional("Lower end of the 95 % interval of the change, in per cent.")
    ci95_high_pct: float | None = optional("Upper end of the 95 % interval of the change, in per cent.")
    interval: IntervalKind | None = optional("What the interval holds; null: there is none.")
    systematic_pct: float | None = optional("95 % half-width of what repeats do not show, in per cent.")
    degrees_of_freedom: float | None = optional("Of the t distribution that was used.")
    p_value: float | None = optional("Two-sided probability of so much if there were no difference (Welch).")
    p_adjusted: float | None = optional("The same, corrected for all comparisons of this figure (Holm).")
    outcome: Outcome = Field(default="not_tested", description="What can be said; `not_tested`: see `reason`.")
    reason: str | None = optional("Why there is no figure or no test.")
    gate: GateTest | None = optional("Null: no limit was set.")


class PairComparison(Record):
    """One configuration of the baseline and its counterpart."""

    name: str = Field(description="The configuration in a few words.")
    baseline_hash: str = Field(description="`measurement_config_hash` of the baseline's configuration.")
    candidate_hash: str = Field(description="`measurement_config_hash` of the candidate's configuration.")
    settings: list[SettingDifference] = empty(list, "Settings in effect that differ.")
    differences: list[Difference] = empty(list, "What else differs; `--accept` let the refused kinds through.")
    notes: list[str] = empty(list, "What to know before believing the figures.")
    energy: FigureComparison = Field(description="Raw joules per output token.")
    speed: FigureComparison = Field(description="Output tokens per second.")

    @property
    def figures(self) -> tuple[FigureComparison, FigureComparison]:
        """Both figures."""
        return self.energy, self.speed

    def figure(self, name: FigureName) -> FigureComparison:
        """One of them by its name."""
        return self.energy if name == "energy_per_token_j" else self.speed


class ComparedSide(Record):
    """Where one side comes from."""

    path: str = Field(description="Directory or file, as it was given, with the setting that chose from it.")
    runs: int = Field(ge=1, description="Results found.")
    configurations: int = Field(ge=1, description="Different configurations among them.")
    first_start: Moment = Field(description="When the first run began (UTC).")
    last_end: Moment = Field(description="When the last run ended (UTC).")


class CandidateComparison(Record):
    """One candidate against the baseline."""

    candidate: ComparedSide = Field(description="The candidate.")
    pairs: list[PairComparison] = empty(list, "Configurations that both have.")
    only_baseline: list[str] = empty(list, "Configurations without counterpart in the candidate.")
    only_candidate: list[str] = empty(list, "Configurations without counterpart in the baseline.")
    notes: list[str] = empty(list, "What holds for all of its pairs.")


class GateVerdict(Record):
    """The decision about a change as a whole."""

    outcome: GateOutcome = Field(description="The worst of all tests; `undecided` where some could not be made.")
    reasons: list[str] = empty(list, "What was found, or what stood in the way.")


class Comparison(Record):
    """Results of a baseline against those of one or several candidates."""

    schema_version: SchemaVersion = RESULT_SCHEMA_VERSION
    tool_version: str = Field(default=VERSION, description="Version of llenergymeasure that compared.")
    baseline: ComparedSide = Field(description="What is compared with.")
    candidates: list[CandidateComparison] = Field(description="What is compared with it, in the order given.")
    accepted: list[Acceptable] = empty(list, "Kinds of difference that were declared as meant.")
    gate: GateVerdict | None = optional("Null: no limit was set.")

    def pairs(self) -> Iterator[PairComparison]:
        """Every pair of every candidate."""
        for candidate in self.candidates:
            yield from candidate.pairs
