"""The report of a study: its configurations against each other, what each setting does, and what went wrong."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from llenergymeasure.constants import VERSION
from llenergymeasure.domain.explanations import explanation_of
from llenergymeasure.domain.readable import duration, joules, one_line, quantity, signed
from llenergymeasure.domain.study import ConfigurationStatistics, StudyManifest, StudyResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import MANIFEST_FILE, REPORT_FILE, STUDY_FILE, TABLE_FILE, load_record
from llenergymeasure.results.report.factors import Change, Factor, factors, strength
from llenergymeasure.results.report.page import (
    Markup,
    Section,
    Tile,
    facts,
    figure,
    folded,
    link,
    markup,
    paragraph,
    render_page,
    table,
    tag,
    tiles,
    together,
)
from llenergymeasure.results.report.repeat import as_yaml, citation, run_again, study_file
from llenergymeasure.results.report.study_charts import (
    Point,
    Spread,
    effect_chart,
    front,
    pareto_chart,
    spread_chart,
)
from llenergymeasure.results.report.study_runs import Run, runs_of, surroundings
from llenergymeasure.results.study_table import (
    best_first,
    differing_parts,
    energy_heading,
    estimate_mark,
    shown_energy,
    shown_mean,
    shown_variation,
)
from llenergymeasure.results.summary import minute

MAX_SPREADS: Final = 30
"""Configurations of which the chart shows every cycle: those that differ most."""

MAX_EFFECTS: Final = 12
"""Settings whose effect is drawn: the strongest."""

MAX_LISTED: Final = 200
"""Failures, and reasons of points left out, that are listed; `study_summary.json` has them all."""


@dataclass(frozen=True, slots=True)
class _Study:
    """A study, and what is looked up beside it; `experiments` is empty where the manifest cannot be read."""

    result: StudyResult
    ranked: Sequence[ConfigurationStatistics]
    names: Sequence[str]
    runs: Mapping[str, Sequence[Run]]
    asked: Mapping[str, Any]
    directory: Path


def study_page(result: StudyResult, directory: Path) -> str:
    """The page of a study that is kept in `directory`: its table and its manifest are read from there."""
    ranked = best_first(result.statistics)
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in runs_of(result, directory):
        runs[run.config_hash].append(run)
    names = differing_parts([entry.config_name or entry.measurement_config_hash for entry in ranked])
    study = _Study(result, ranked, names, runs, _asked(directory), directory)
    sections = [
        Section("Configurations", _configurations(study)),
        Section("Energy against throughput", _pareto(study)),
        Section("What each setting does", _effects(study)),
        Section("Spread of the cycles", _spread(study)),
        Section("Warnings", _warnings(study)),
        Section("Failures and points left out", _failures(result)),
        Section("What was measured, and on what", _surroundings(study)),
        Section("Run it again", _again(study)),
        Section("Cite it", citation(VERSION, result.started_at)),
        Section("Files", _files(study)),
    ]
    opening = together(paragraph(_meaning(study), class_="lead"), tiles(_tiles(study)))
    return render_page(result.name or result.study_id, f"A study, begun {minute(result.started_at)}", sections, opening)


def _asked(directory: Path) -> Mapping[str, Any]:
    """The resolved study from its manifest; empty where there is none that can be read."""
    try:
        return load_record(directory / MANIFEST_FILE, StudyManifest, "study manifest", follow_links=False).study
    except PersistenceError:
        return {}


def _meaning(study: _Study) -> str:
    done = study.result.summary
    counted = f"{done.completed} of {done.total_experiments} runs have a result"
    if study.result.completed_at is None:
        counted += "; the study was stopped before its end"
    best = study.ranked[0] if study.ranked else None
    if best is None or best.energy_per_token_j is None:
        return f"{counted}."
    text = f"{counted}. The least energy per output token took {study.names[0]}: {shown_energy(best, True)}"
    worst = [entry for entry in study.ranked if entry.energy_vs_best is not None and entry.estimated == best.estimated]
    if len(worst) > 1:
        text += f"; the most took {quantity(worst[-1].energy_vs_best or 1.0)} times as much"
    return f"{text}. ± is the half-width of the 95 % interval of the mean over the cycles."


def _tiles(study: _Study) -> Iterator[Tile]:
    summary = study.result.summary
    best = study.ranked[0] if study.ranked else None
    kind = ", estimated" if best is not None and best.estimated else ""
    if best is not None and best.energy_per_token_j is not None:
        yield Tile(f"Least energy{kind}", f"{shown_energy(best, False)}/token", study.names[0])
    speeds = [
        (entry.tokens_per_second.mean, index) for index, entry in enumerate(study.ranked) if entry.tokens_per_second
    ]
    if speeds:
        _, index = max(speeds)
        yield Tile("Fastest", f"{shown_mean(study.ranked[index].tokens_per_second)} tokens/s", study.names[index])
    failed = f"{summary.failed} failed, {summary.skipped} not valid"
    yield Tile("Runs", f"{summary.completed} of {summary.total_experiments}", failed)
    energy = "not measured" if summary.total_energy_j is None else joules(summary.total_energy_j)
    detail = f"{energy} in all windows{estimate_mark(study.ranked)}"
    yield Tile("Duration", duration(summary.total_wall_time_s), detail)


def _configurations(study: _Study) -> Markup:
    if not study.ranked:
        return paragraph("No run was completed; the failures below say why.")
    energy, mixed = energy_heading(study.ranked)
    headings = ["Place", "Configuration", energy, "× best", "Tokens/s", "TTFT", "CV", "Runs"]
    rows = [
        [
            str(rank),
            name,
            shown_energy(entry, mixed),
            "" if entry.energy_vs_best is None else quantity(entry.energy_vs_best),
            shown_mean(entry.tokens_per_second),
            "" if entry.ttft_ms is None else f"{quantity(entry.ttft_ms.mean)} ms",
            shown_variation(entry.energy_per_token_j or entry.tokens_per_second),
            _links(study, entry),
        ]
        for rank, (name, entry) in enumerate(zip(study.names, study.ranked, strict=True), start=1)
    ]
    legend = paragraph(
        "Best first. ± is the 95 % interval of the mean over the cycles, CV their coefficient of variation, ! one "
        "above 5 %. The numbers of the runs lead to their reports.",
        class_="note",
    )
    return together(table(headings, rows, "Mean of each configuration", text_columns=(0, 1)), legend)


def _links(study: _Study, entry: ConfigurationStatistics) -> Markup:
    """The reports of a configuration's runs, by their cycles."""
    runs = study.runs.get(entry.measurement_config_hash, ())
    if not runs:
        return markup(str(entry.cycles))
    links = [
        link(str(run.cycle or place), quote(Path(run.file).with_name(REPORT_FILE).as_posix()))
        for place, run in enumerate(runs, 1)
    ]
    return together(*(part for shown in links for part in (shown, " ")))


def _pareto(study: _Study) -> Markup:
    best = front(study.ranked)
    points = [
        Point(
            rank,
            f"{rank}: {name}, {shown_energy(entry, True)} per token, {shown_mean(entry.tokens_per_second)} tokens/s",
            entry.energy_per_token_j,
            entry.tokens_per_second,
            entry.estimated,
            entry.measurement_config_hash in best,
        )
        for rank, (name, entry) in enumerate(zip(study.names, study.ranked, strict=True), start=1)
        if entry.energy_per_token_j is not None and entry.tokens_per_second is not None
    ]
    if not points:
        return paragraph("No configuration has both an energy and a throughput.")
    chosen = [point for point in points if point.on_front]
    caption = (
        f"To the lower right is better. {len(chosen)} of {len(points)} configurations are on the front: none is both "
        "faster and thriftier. Lines are 95 % intervals over the cycles, which may go on beyond the chart; numbers "
        "are places in the table above."
    )
    if len({point.estimated for point in points}) > 1:
        caption += " Violet points are estimates, which have a front of their own."
    numbers = table(
        ["Place", "On the front", "J/token", "Tokens/s"],
        [
            [str(point.rank), study.names[point.rank - 1], joules(point.energy.mean), quantity(point.speed.mean)]
            for point in sorted(chosen, key=lambda point: point.rank)
        ],
        text_columns=(0, 1),
    )
    described = "; ".join(point.text for point in chosen[:MAX_SPREADS])
    return figure(pareto_chart(points, f"The front: {described}"), caption, numbers)


def _effects(study: _Study) -> Markup:
    found = factors(study.asked.get("experiments", []), study.ranked) if study.asked else []
    if not found:
        why = (
            "The study varies no setting." if study.asked else "The manifest, which knows the settings, cannot be read."
        )
        return paragraph(why)
    told = sorted((factor for factor in found if strength(factor) > 0), key=strength, reverse=True)
    untold = [factor.name for factor in found if strength(factor) == 0]
    intro = paragraph(
        "Each level of a setting against its first one, in pairs of configurations that differ in nothing else. The "
        "dot is the geometric mean over all pairs, the thin line its 95 % interval by the spread of the cycles: where "
        "it crosses 0, no effect was shown. The band reaches from the smallest pair to the largest: where it is wider "
        "than the line, the effect depends on the other settings."
    )
    parts = [intro, *(_effect(f"effect-{place}", factor) for place, factor in enumerate(told[:MAX_EFFECTS]))]
    if len(told) > MAX_EFFECTS:
        left = ", ".join(factor.name for factor in told[MAX_EFFECTS:])
        parts.append(paragraph(f"Weaker, and not drawn: {left}.", class_="note"))
    if untold:
        text = f"No two measured configurations differ in one of these alone, or to any effect: {', '.join(untold)}."
        parts.append(paragraph(text, class_="note"))
    return together(*parts)


def _effect(name: str, factor: Factor) -> Markup:
    rows = [[level.label, *_shown(level.energy), *_shown(level.speed)] for level in factor.levels]
    each = ["95 % interval", "All pairs", "Pairs"]
    numbers = table(["Level", "J/token", *each, "Tokens/s", *each], rows, f"Effect of {factor.name}")
    described = "; ".join(f"{row[0]}: J/token {row[1]}, tokens/s {row[5]}" for row in rows)
    drawn = figure(
        effect_chart(name, factor, described), f"Change against {factor.name} = {factor.levels[0].label}.", numbers
    )
    return together(tag("h3", factor.name), drawn)


def _shown(change: Change | None) -> tuple[str, str, str, str]:
    if change is None:
        return "no pair", "", "", "0"
    interval = _from_to(change.ci95_low, change.ci95_high)
    return f"{signed(100 * (change.mean - 1))} %", interval, _from_to(change.low, change.high), str(change.pairs)


def _from_to(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{signed(100 * (low - 1))} … {signed(100 * (high - 1))} %"


def _spread(study: _Study) -> Markup:
    cycles = study.result.measurement_protocol.n_cycles
    spreads = [
        spread for entry, name in zip(study.ranked, study.names, strict=True) if (spread := _cycles(study, entry, name))
    ]
    if not spreads:
        once = "Each configuration was measured once, so nothing is known of its spread."
        return paragraph(once if cycles == 1 else "No configuration has two results in results.parquet to compare.")
    spreads.sort(key=lambda spread: max(map(abs, spread.deviations_pct)), reverse=True)
    drawn = spreads[:MAX_SPREADS]
    unit = _units_of_spread(study.ranked)
    whose = (
        "all configurations" if len(drawn) == len(spreads) else f"the {len(drawn)} of {len(spreads)} that differ most"
    )
    protocol = study.result.measurement_protocol
    caption = f"{unit} of each cycle of {whose}, against their mean. Order of the cycles: {protocol.cycle_order}."
    numbers = table(
        ["Configuration", "Cycles", "Lowest", "Highest"],
        [
            [
                spread.name,
                str(len(spread.cycles)),
                f"{signed(min(spread.deviations_pct), 2)} %",
                f"{signed(max(spread.deviations_pct), 2)} %",
            ]
            for spread in drawn
        ],
    )
    described = f"widest: {drawn[0].name}, {max(map(abs, drawn[0].deviations_pct)):.2g} % from its mean"
    return figure(spread_chart(drawn, described), caption, numbers)


def _units_of_spread(entries: Sequence[ConfigurationStatistics]) -> str:
    measured = {entry.energy_per_token_j is not None for entry in entries}
    if len(measured) > 1:
        return "J/token, or tokens/s where there is no energy,"
    return "J/token" if True in measured else "tokens/s"


def _cycles(study: _Study, entry: ConfigurationStatistics, name: str) -> Spread | None:
    mean = entry.energy_per_token_j or entry.tokens_per_second
    runs = study.runs.get(entry.measurement_config_hash, ())
    read = [run.energy_j if entry.energy_per_token_j else run.speed for run in runs]
    known = [
        (run.cycle or place, value)
        for place, (run, value) in enumerate(zip(runs, read, strict=True), 1)
        if value is not None
    ]
    if mean is None or not mean.mean or len(known) < 2:
        return None
    deviations = [100 * (value / mean.mean - 1) for _, value in known]
    return Spread(name, deviations, [cycle for cycle, _ in known])


def _warnings(study: _Study) -> Markup:
    counted = study.result.warnings
    if not counted:
        return paragraph("None.")
    affected: Counter[str] = Counter(code for entry in study.ranked for code in entry.warnings)
    rows = [[tag("code", code), str(runs), str(affected[code]), *_explained(code)] for code, runs in counted.items()]
    headings = ["Warning", "Runs", "Configurations", "Given when", "What to do"]
    note = paragraph("The report of each run has the figures to its own.", class_="note")
    return together(table(headings, rows, "Warnings of all runs", text_columns=(0, 3, 4)), note)


def _explained(code: str) -> tuple[str, str]:
    explanation = explanation_of(code)
    if explanation is None:
        return "", ""
    return explanation.raised_when.replace("`", ""), explanation.remedy.replace("`", "")


def _failures(result: StudyResult) -> Markup:
    done = result.summary
    untried = done.total_experiments - done.completed - done.failed
    if not (result.failed or result.skipped or untried):
        return paragraph("None: every run has a result, and every point of the study was valid.")
    parts = [paragraph(f"{untried} of {done.total_experiments} runs were not tried.")] if untried > 0 else []
    if result.failed:
        rows = [
            [
                failure.config_name or str(failure.config.get("model", "")),
                str(failure.cycle or ""),
                failure.error_type or "",
                failure.reason,
            ]
            for failure in result.failed[:MAX_LISTED]
        ]
        parts.append(table(["Failed", "Cycle", "Error", "Reason"], rows, text_columns=(0, 2, 3)))
        parts.append(_more(len(result.failed)))
    if result.skipped:
        reasons = Counter(one_line(point.reason) for point in result.skipped)
        rows = [[reason, str(count)] for reason, count in reasons.most_common(MAX_LISTED)]
        parts.append(table(["Points left out, because", "Points"], rows))
        first = [json.dumps(point.config, ensure_ascii=False) for point in result.skipped[:MAX_LISTED]]
        parts.append(folded("The points", tag("pre", "\n".join(first)), _more(len(result.skipped))))
    return together(*parts)


def _more(count: int) -> Markup:
    text = f"{MAX_LISTED} of {count}; study_summary.json has them all."
    return paragraph(text, class_="note") if count > MAX_LISTED else Markup()


def _surroundings(study: _Study) -> Markup:
    if not study.ranked:
        return paragraph("No run was completed.")
    told = [(name, text) for name, text in surroundings(study.result, study.directory) if text]
    if not told:
        return paragraph(f"{TABLE_FILE}, which tells it, cannot be read.")
    note = paragraph("Versions, drivers and limits are in the report of each run.", class_="note")
    return together(facts(told), note)


def _again(study: _Study) -> Markup:
    if not study.asked.get("experiments"):
        return paragraph("The manifest, which holds the study's configuration, cannot be read.")
    content = study_file(study.asked, study.result.name)
    remark = "Every experiment of the study, its sweep spelled out. As study.yaml:"
    return run_again("llem run study.yaml", as_yaml(content), remark)


def _files(study: _Study) -> Markup:
    named = [name for name in (TABLE_FILE, STUDY_FILE, MANIFEST_FILE) if (study.directory / name).is_file()]
    return tag("ul", *(tag("li", link(name, name)) for name in named), class_="ways")
