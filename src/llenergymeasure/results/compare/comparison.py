"""Results of a baseline against those of candidates: every pair and figure, the error over all of them bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.domain.comparison import (
    Acceptable,
    CandidateComparison,
    Comparison,
    FigureComparison,
    PairComparison,
)
from llenergymeasure.domain.readable import duration
from llenergymeasure.exceptions import ComparisonError
from llenergymeasure.results.compare.alike import differences_between, refuse_unlike
from llenergymeasure.results.compare.figures import Tested, compare_figure, corrected, share_boards
from llenergymeasure.results.compare.gate import Limits, gate_tests, verdict
from llenergymeasure.results.compare.pairing import Pair, pair_up, setting_differences
from llenergymeasure.results.compare.sides import Run, Side, refuse_common_runs
from llenergymeasure.results.statistics import HIGH_VARIATION_PCT
from llenergymeasure.results.study_table import differing_parts

LOPSIDED: Final = 2
"""From this many times as many runs on one side on, rare outliers on it make a test against the other less reliable."""

CPU: Final = "cpu"
"""What a processor is called among the devices, on whatever machine."""


@dataclass(frozen=True, slots=True)
class _Matched:
    """A pair and what was found about it so far."""

    pair: PairComparison
    energy: Tested
    speed: Tested

    def judged(self, energy: FigureComparison, speed: FigureComparison) -> PairComparison:
        return self.pair.model_copy(update={"energy": energy, "speed": speed})


def compare(
    sides: Sequence[Side],
    ignore: Collection[str] = (),
    accept: Collection[Acceptable] = (),
    limits: Limits | None = None,
) -> Comparison:
    """Compare the first side with each of the others.

    Args:
        ignore: See `pair_up`.
        limits: What the gate lets through; `None`: no gate.

    Raises:
        ComparisonError: The sides hold the same run, have no configuration in common, or are not alike.
    """
    if len(sides) < 2:
        raise ComparisonError("A comparison needs two directories, or one and --by SETTING.")
    refuse_common_runs(sides)
    baseline, *candidates = sides
    pairings = [pair_up(baseline, candidate, ignore) for candidate in candidates]
    matched = [_match(pair, name) for pairing in pairings for pair, name in _named(pairing.pairs)]
    refuse_unlike([entry.pair for entry in matched], accept)
    pairs = iter(_judged(matched, limits or Limits()))
    compared = [
        CandidateComparison(
            candidate=candidate.described(),
            pairs=[next(pairs) for _ in pairing.pairs],
            only_baseline=[configuration.name for configuration in pairing.only_baseline],
            only_candidate=[configuration.name for configuration in pairing.only_candidate],
            notes=list(_notes_on_time(baseline, candidate)),
        )
        for candidate, pairing in zip(candidates, pairings, strict=True)
    ]
    gate = None if limits is None else verdict(compared, missing_matters="unpaired" not in accept)
    return Comparison(baseline=baseline.described(), candidates=compared, accepted=list(accept), gate=gate)


def _named(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, str]]:
    """Pairs and what tells them apart; of a single one, what tells its sides apart."""
    if len(pairs) == 1:
        sides = differing_parts([configuration.name for configuration in pairs[0]])
        yield pairs[0], " → ".join(dict.fromkeys(sides))
        return
    names = [_common_name(pair) for pair in pairs]
    if len(set(names)) < len(names):
        names = [baseline.name for baseline, _ in pairs]
    yield from zip(pairs, differing_parts(names), strict=True)


def _common_name(pair: Pair) -> str:
    """The parts of a name that both sides have, or the name of the first."""
    first, second = (configuration.name.split(" / ") for configuration in pair)
    return " / ".join(part for part in first if part in second) or pair[0].name


def _match(pair: Pair, name: str) -> _Matched:
    baseline, candidate = pair
    energy = compare_figure("energy_per_token_j", baseline.runs, candidate.runs)
    speed = compare_figure("tokens_per_second", baseline.runs, candidate.runs)
    record = PairComparison(
        name=name,
        baseline_hash=baseline.config_hash,
        candidate_hash=candidate.config_hash,
        settings=list(setting_differences(baseline, candidate)),
        differences=list(differences_between(baseline.runs, candidate.runs)),
        notes=list(_notes_on_pair(baseline.runs, candidate.runs, energy.comparison)),
        energy=energy.comparison,
        speed=speed.comparison,
    )
    return _Matched(record, energy, speed)


def _judged(matched: Sequence[_Matched], limits: Limits) -> list[PairComparison]:
    """All pairs; a figure's tests are corrected for all of its own, the gate's for all of the gate."""
    energies = list(corrected([entry.energy for entry in matched]))
    speeds = list(corrected([entry.speed for entry in matched]))
    gates = gate_tests([*energies, *speeds], limits)
    figures = [
        test.comparison.model_copy(update={"gate": gate})
        for test, gate in zip([*energies, *speeds], gates, strict=True)
    ]
    count = len(matched)
    return [entry.judged(*both) for entry, *both in zip(matched, figures[:count], figures[count:], strict=True)]


def _notes_on_pair(baseline: Sequence[Run], candidate: Sequence[Run], energy: FigureComparison) -> Iterator[str]:
    runs = (*baseline, *candidate)
    if any(run.estimated for run in runs):
        yield (
            "The joules are a model's estimate: it knows the processor's load and the time that passed, and misses "
            "every difference that these do not show."
        )
    if energy.change_pct is not None and not any(run.estimated for run in runs):
        yield from _notes_on_gain(baseline, candidate)
    counts = sorted((len(baseline), len(candidate)))
    if counts[1] > LOPSIDED * counts[0]:
        yield f"{counts[1]} runs against {counts[0]}: with such unequal numbers rare outliers count for too much."
    spreads = [side.cv_pct or 0.0 for side in (energy.baseline, energy.candidate) if side is not None]
    if max(spreads, default=0.0) > HIGH_VARIATION_PCT:
        yield (
            f"The joules spread by more than {HIGH_VARIATION_PCT:g} % from run to run: more cycles, longer windows or "
            "a quieter machine would tell more."
        )
    yield from _notes_on_warnings(baseline, candidate)


def _notes_on_warnings(baseline: Sequence[Run], candidate: Sequence[Run]) -> Iterator[str]:
    everywhere = set.intersection(*(set(run.warnings) for run in (*baseline, *candidate)))
    if everywhere:
        yield f"Warnings in every run: {', '.join(sorted(everywhere))}."
    some = [_warned(runs, everywhere) for runs in (baseline, candidate)]
    if any(some):
        yield f"Warnings in some runs, baseline: {some[0] or 'none'}; candidate: {some[1] or 'none'}."


def _warned(runs: Sequence[Run], but: Collection[str]) -> str:
    counts = Counter(code for run in runs for code in run.warnings if code not in but)
    return ", ".join(f"{code} ({count} of {len(runs)})" for code, count in counts.most_common())


def _notes_on_gain(baseline: Sequence[Run], candidate: Sequence[Run]) -> Iterator[str]:
    """Whether the error that is the same in every run of a board is in the difference."""
    runs = (*baseline, *candidate)
    if not share_boards(baseline, candidate):
        known = all(run.boards is not None for run in runs)
        what = "The sides are not of the same boards" if known else "Which boards were measured is not recorded"
        stated = all(run.stated is not None for run in runs)
        yield (
            f"{what}: the gains of their sensors do not cancel. "
            + ("The interval holds them." if stated else "They are not stated, and not in the interval.")
        )
    elif all(run.boards == frozenset({CPU}) for run in runs):
        yield "Which machine measured is not recorded: the gain of its sensor cancels only if it was the same one."


def _notes_on_time(baseline: Side, candidate: Side) -> Iterator[str]:
    """Whether a drift of the machine could have met one side alone."""
    first, second = baseline.described(), candidate.described()
    gaps_s = {
        "after": (second.first_start - first.last_end).total_seconds(),
        "before": (first.first_start - second.last_end).total_seconds(),
    }
    for when, gap_s in gaps_s.items():
        if gap_s >= 0:
            yield (
                f"Every run of the candidate came {when} those of the baseline ({duration(gap_s)} between them): what "
                "else changed on the machine meanwhile is in the difference. Alternate the sides to keep it out."
            )
