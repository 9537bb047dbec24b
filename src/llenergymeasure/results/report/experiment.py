"""The report of one experiment: its figures with their uncertainty, what they rest on, and how to run it again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from llenergymeasure.constants import VERSION
from llenergymeasure.domain.base import as_utc
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.latency import Histogram, Percentiles, histogram
from llenergymeasure.domain.metrics import ratio, wh_per_1000
from llenergymeasure.domain.readable import duration, in_units, joules, percent, quantity, signed
from llenergymeasure.results.persistence import RESULT_FILE
from llenergymeasure.results.report import experiment_charts as charts
from llenergymeasure.results.report.page import (
    Markup,
    Part,
    Section,
    Tile,
    bar,
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
from llenergymeasure.results.report.power import WindowSeries, window_series
from llenergymeasure.results.report.repeat import as_said, as_yaml, citation, run_again
from llenergymeasure.results.summary import METHODS, SCOPE_NAMES, energy_per_token, minute, name_of

_MAX_ROWS: Final = 60
"""Rows of a table beside a chart of power over time; the files beside the result hold the rest."""

_WAITING_PCT: Final = 50.0
"""A GPU that has work in less of the window waits for the host: on an H100 that had in 18 to 27 % of it, joules per
token varied by up to 22 % with the host's speed (docs/validation/nvidia-h100-80gb-hbm3)."""

_LATENCIES: Final = {
    "ttft": "Time to first token",
    "itl": "Between two tokens",
    "e2e": "Whole request",
}


def experiment_page(result: ExperimentResult, directory: Path) -> str:
    """The page of a result that is kept in `directory`; the files beside it are read from there."""
    series = window_series(result, directory)
    sections = [
        Section("Power over time", _power(result, series)),
        Section("Where the energy went", _split(result)),
        Section("How sure the energy is", _uncertainty(result)),
        Section("Latency", _latency(result)),
        Section("Energy of a request", _requests(result)),
        Section("Warnings", _warnings(result)),
        Section("Machine and software", _environment(result)),
        Section("Run it again", _again(result)),
        Section("Cite it", citation(_version(result), result.start_time)),
        Section("Files", _files(result, directory)),
    ]
    opening = together(paragraph(_meaning(result), class_="lead"), tiles(_tiles(result)))
    return render_page(name_of(result), f"One experiment, measured {minute(result.start_time)}", sections, opening)


def _version(result: ExperimentResult) -> str:
    return result.environment_snapshot.tool_version if result.environment_snapshot is not None else VERSION


def _meaning(result: ExperimentResult) -> str:
    """The headline figures in a sentence or two."""
    speed = f"{quantity(result.avg_tokens_per_second)} output tokens came out per second"
    if result.avg_energy_per_token_j is None:
        return f"The energy of this run was not measured; the warnings below say why. {speed}."
    requests_wh = wh_per_1000(ratio(result.total_energy_j, result.num_requests))
    parts = [f"One output token took {energy_per_token(result).replace('/token', '')}"]
    if requests_wh is not None:
        parts.append(f"a thousand requests like these {in_units(requests_wh, 'Wh')}")
    kind = " These joules are an estimate by a model of the machine, not a measurement." if result.is_estimate else ""
    half_width = " ± is the half-width of the 95 % interval." if result.uncertainty is not None else ""
    return f"{', '.join(parts)}; {speed}.{half_width}{kind}"


def _tiles(result: ExperimentResult) -> Iterator[Tile]:
    yield Tile("Energy per output token", energy_per_token(result), METHODS.get(_method(result), ""))
    tokens = "" if result.output_tokens is None else f"{result.output_tokens:,} output tokens in "
    window = f"{tokens}{duration(result.total_inference_time_sec)}"
    yield Tile("Throughput", f"{quantity(result.avg_tokens_per_second)} tokens/s", window)
    stats = result.latency_stats
    for label, told in (
        ("Time to first token", stats.ttft_ms if stats else None),
        ("Between two tokens", stats.itl_ms if stats else None),
    ):
        if told is None:
            yield Tile(label, "not told", "the engine gives no instants of tokens")
        else:
            yield Tile(label, f"{quantity(told.mean)} ms", f"mean; p95 {quantity(told.p95)} ms, {told.count:,} values")


def _method(result: ExperimentResult) -> str:
    return (result.energy_breakdown.method if result.energy_breakdown else None) or ""


def _power(result: ExperimentResult, series: WindowSeries | None) -> Markup:
    if series is None or not any(device.knows("power_w") for device in series.devices):
        return paragraph(
            f"No power over time: {_no_samples(result, series)}. The figures above do not rest on samples."
        )
    idle_w = result.baseline_power_w if len(series.devices) == 1 else None
    described = "; ".join(charts.spoken(device, series) for device in series.devices)
    phases = "Prefill and decode are shaded. " if series.stretches.get("prefill") else f"{_no_phases(result)} "
    kind = "Every sample of the power sensor" if series.raw else "Mean power of each second"
    caption = (
        f"{kind}. {phases}Dotted lines are the ends of the window whose energy and tokens count; "
        "loading and warm-up lie before it."
    )
    return figure(charts.power_chart(series, idle_w, described), caption, _power_table(series))


def _no_samples(result: ExperimentResult, series: WindowSeries | None) -> str:
    if result.total_energy_j is None:
        return "energy was not measured"
    is_missing = result.timeseries is not None and series is None
    return "the time series is missing" if is_missing else "what measured takes no power samples"


def _no_phases(result: ExperimentResult) -> str:
    if len(result.process_results) > 1:
        return "Each process has phases of its own, which are not drawn."
    return "When prefill and decode were is not in the files of this run."


def _power_table(series: WindowSeries) -> Markup:
    rows: list[list[str]] = []
    for device in series.devices:
        step = math.ceil(len(device.times_s) / _MAX_ROWS)
        for index in range(0, len(device.times_s), step):
            readings = [device.readings[name][index] for name in ("power_w", "temperature_c", "sm_clock_mhz")]
            shown = [quantity(value) if math.isfinite(value) else "not told" for value in readings]
            rows.append([f"{device.times_s[index]:.1f}", device.name, *shown])
    headings = ["Seconds", "Device", "Power (W)", "Temperature (°C)", "SM clock (MHz)"]
    shown_rows = f"{len(rows)} of {sum(len(device.times_s) for device in series.devices)} readings"
    return table(headings, rows, shown_rows, text_columns=(0, 1))


def _split(result: ExperimentResult) -> Markup:
    raw_j = result.total_energy_j
    if not raw_j:
        return paragraph("Energy was not measured." if raw_j is None else "The meter saw no energy in the window.")
    scope = result.energy_breakdown.scope if result.energy_breakdown is not None else None
    metered = "" if scope is None else f" Metered: {SCOPE_NAMES[scope]}."
    parts = [paragraph(f"{joules(raw_j)} within the window.{metered}{_busy(result)}")]
    parts += [_above_idle(result, raw_j), _phases(result, raw_j), _devices(result)]
    return together(*parts)


def _busy(result: ExperimentResult) -> str:
    busy_pct = result.device_utilisation_pct
    if busy_pct is None:
        return ""
    is_alone = len(result.energy_by_device_j or {}) == 1  # several wait for each other, too
    waits = (
        "; the GPU waited for the host, whose speed these joules depend on"
        if is_alone and busy_pct < _WAITING_PCT
        else ""
    )
    return f" Kernels ran in {busy_pct:.0f} % of the window{waits}."


def _above_idle(result: ExperimentResult, raw_j: float) -> Markup:
    above_j = result.energy_adjusted_j
    heading = tag("h3", "Idle and above")
    if above_j is None:
        return together(heading, paragraph("Idle power was not measured, so nobody can say what the work added to it."))
    idle_j = raw_j - above_j
    half_width_j = result.uncertainty.absolute_adjusted_j if result.uncertainty else None
    label = f"above idle: {joules(above_j, half_width=half_width_j)}, {percent(above_j / raw_j)}"
    idle_w = "" if result.baseline_power_w is None else f" ({quantity(result.baseline_power_w)} W all along)"
    parts = [
        Part(label, above_j / raw_j, charts.DECODE_COLOUR),
        Part(f"idle: {joules(idle_j)}, {percent(idle_j / raw_j)}{idle_w}", idle_j / raw_j, 7),
    ]
    return together(heading, bar(parts, "; ".join(part.label for part in parts)))


def _phases(result: ExperimentResult, raw_j: float) -> Markup:
    heading = tag("h3", "Prefill and decode")
    phases = result.phases
    prefill_j = phases.prefill.energy_j if phases and phases.prefill else None
    decode_j = phases.decode.energy_j if phases and phases.decode else None
    if phases is None or prefill_j is None or decode_j is None:
        reason = phases.reason if phases and phases.reason else "the engine gives no instants of tokens"
        return together(heading, paragraph(f"Not told apart: {reason}."))
    rest_j = raw_j - prefill_j - decode_j
    named = [("prefill", prefill_j, charts.PREFILL_COLOUR), ("decode", decode_j, charts.DECODE_COLOUR)]
    named += [("neither", rest_j, 7)] if rest_j > 0.0005 * raw_j else []
    parts = [
        Part(f"{name}: {joules(part_j)}, {percent(part_j / raw_j)}", part_j / raw_j, colour)
        for name, part_j, colour in named
    ]
    return together(heading, bar(parts, "; ".join(part.label for part in parts)))


def _devices(result: ExperimentResult) -> Markup:
    by_device = result.energy_by_device_j or {}
    if len(by_device) < 2:
        return Markup()
    rows = [
        [f"{number}", device, "could not be read" if energy_j is None else joules(energy_j)]
        for number, (device, energy_j) in enumerate(by_device.items())
    ]
    return together(tag("h3", "Devices"), table(["Device", "UUID", "Energy"], rows, text_columns=(0, 1)))


def _uncertainty(result: ExperimentResult) -> Markup:
    stated = result.uncertainty
    if stated is None or result.total_energy_j is None:
        why = "energy was not measured" if result.total_energy_j is None else "what measured states none"
        return paragraph(f"No uncertainty: {why}.")
    raw = [part for part in stated.budget if part.kind != "baseline"]
    shares = _shares(raw)
    parts = [
        Part(f"{part.name}: ± {joules(part.half_width_j)}, {percent(share)} of the whole", share, number % 7)
        for number, (part, share) in enumerate(zip(raw, shares, strict=True))
        if share > 0
    ]
    text = (
        f"± {joules(stated.absolute_j)} for publishing, with the sensor's gain; ± {joules(stated.comparative_j)} "
        "between runs on one board, in which the gain cancels. Both are half-widths of 95 % intervals."
    )
    drawn = bar(parts, "; ".join(part.label for part in parts)) if parts else Markup()
    rows = [
        [
            part.name,
            joules(part.half_width_j),
            "" if part.relative_pct is None else f"{part.relative_pct:.2g} %",
            part.note,
        ]
        for part in stated.budget
    ]
    lines = table(
        ["Source of error", "Half-width", "Of the energy", "How its size was found"], rows, text_columns=(0, 3)
    )
    kind = "Parts add up as squares, and so are their shares drawn. That of the baseline counts above idle only."
    return together(paragraph(text), drawn, paragraph(kind, class_="note"), lines, _audit(result))


def _shares(budget: Sequence[BudgetComponent]) -> list[float]:
    whole = math.fsum(part.half_width_j**2 for part in budget)
    return [part.half_width_j**2 / whole if whole else 0.0 for part in budget]


def _audit(result: ExperimentResult) -> Markup:
    audit, engine_j = result.energy_audit, result.engine_energy_j
    own = ""
    if engine_j is not None:
        own = f" A meter of the engine's own says {joules(engine_j)}, with what opening and closing the first takes."
    if audit is None:
        return paragraph(own) if own else Markup()
    allowed = abs(audit.disagreement_pct) <= audit.bound_pct
    verdict = "which" if allowed else "more than"
    each = ", though not of each board" if allowed and not audit.agrees else ""
    counter = f"the hardware counter says {joules(audit.counter_j)}"
    if audit.fused_j is not None:
        counter = (
            f"the hardware counter, completed by power samples at the window's edges, says {joules(audit.fused_j)}"
        )
    return paragraph(
        f"A second method checks the first: {counter}, the integral of power samples alone "
        f"{joules(audit.integral_j)}. They differ by {signed(audit.disagreement_pct, 2)} %, {verdict} "
        f"their uncertainties allow ({audit.bound_pct:.2g} %){each}.{own}"
    )


def _latency(result: ExperimentResult) -> Markup:
    stats = result.latency_stats
    told: list[tuple[str, Histogram, Percentiles]] = []
    rows = []
    for name, title in _LATENCIES.items():
        spread: Percentiles | None = getattr(stats, f"{name}_ms", None)
        drawn: Histogram | None = getattr(stats, f"{name}_histogram", None)
        if spread is not None:
            rows.append(_spread_row(title, spread))
            told += [(title, drawn, spread)] if drawn is not None else []
    if not rows:
        return paragraph("No latencies: the engine told none, or no whole request lies in the window.")
    missing = [title.lower() for name, title in _LATENCIES.items() if getattr(stats, f"{name}_ms", None) is None]
    note = paragraph(f"Not told by the engine: {', '.join(missing)}.", class_="note") if missing else Markup()
    numbers = table(["In ms", "Values", "Mean", "Median", "p90", "p95", "p99", "Lowest", "Highest"], rows)
    if not told:
        return together(numbers, note)
    described = "; ".join(
        f"{title}: median {quantity(spread.p50)} ms, p95 {quantity(spread.p95)} ms" for title, _, spread in told
    )
    caption = "How many values lie where; the full line is the median, the broken one the 95th percentile."
    return together(figure(charts.latency_chart(told, described), caption, numbers), note)


def _spread_row(title: str, spread: Percentiles) -> list[str]:
    values = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.min, spread.max)
    return [title, f"{spread.count:,}", *map(quantity, values)]


def _requests(result: ExperimentResult) -> Markup:
    told = result.request_energy
    if told is None or told.energy_j is None:
        reason = told.reason if told and told.reason else "energy or the instants of tokens were not measured"
        return paragraph(f"No joules of single requests: {reason}.")
    spread = told.energy_j
    numbers = table(
        ["In J", "Values", "Mean", "Median", "p90", "p95", "p99", "Lowest", "Highest"], [_spread_row("Energy", spread)]
    )
    described = f"median {joules(spread.p50)}, p95 {joules(spread.p95)}, {spread.count:,} requests"
    energies_j = result.requests.energy_j if result.requests else None
    if energies_j is None or (drawn := histogram(energies_j)) is None:
        return together(paragraph(f"{described}."), numbers)
    caption = (
        f"What single requests took: {described}. These are shares of the meter's figure, which add up to it; "
        "while several were served at once, each is charged for its own tokens."
    )
    return figure(charts.request_energy_chart(drawn, spread, "J", described), caption, numbers)


def _warnings(result: ExperimentResult) -> Markup:
    if not result.measurement_warnings:
        return paragraph("None.")
    parts = []
    for warning in result.measurement_warnings:
        name, found, text = warning.partition(": ")
        shown = together(tag("code", name), paragraph(text)) if found else paragraph(warning)
        parts.append(tag("div", shown, class_="warning"))
    return together(*parts)


def _environment(result: ExperimentResult) -> Markup:
    snapshot, boundary, breakdown = result.environment_snapshot, result.measurement_boundary, result.energy_breakdown
    dataset, pairs = result.dataset, [("Engine", f"{result.backend} {result.backend_version or ''}".rstrip())]
    pairs += [("Model", result.model_name or ""), ("Revision", result.model_revision or "")]
    if dataset is not None:
        pairs += [
            ("Data set", f"{dataset.name}, {dataset.prompt_count:,} prompts"),
            ("Its SHA-256", dataset.sha256 or ""),
        ]
    pairs += [("Meter", breakdown.meter or "" if breakdown else "none"), ("Method", METHODS.get(_method(result), ""))]
    if boundary is not None:
        pairs += [("Devices", ", ".join(boundary.device_names or boundary.devices))]
        pairs += [("In the energy", "; ".join(boundary.includes)), ("Not in it", "; ".join(boundary.excludes))]
    if snapshot is not None:
        pairs += [
            ("GPUs", ", ".join(snapshot.gpu_names)),
            ("Power limits", ", ".join("not told" if w is None else f"{w:g} W" for w in snapshot.gpu_power_limit_w)),
            ("NVIDIA driver", snapshot.cuda_driver_version or ""),
            ("CUDA", snapshot.cuda_version or ""),
            ("Processor", (snapshot.cpu.model or "") if snapshot.cpu else ""),
            ("System", snapshot.os_version or snapshot.platform),
            ("Python", snapshot.python_version),
            ("llenergymeasure", snapshot.tool_version),
        ]
    pairs += [
        ("Runner", result.runner or ""),
        ("Window", f"{duration(result.total_inference_time_sec)} of {duration(result.duration_sec)} in all"),
        ("Began", f"{as_utc(result.start_time):%Y-%m-%d %H:%M:%S} UTC"),
        ("Configuration hash", result.measurement_config_hash),
        ("A second run", result.reproducibility_notes),
    ]
    packages = snapshot.pip_freeze if snapshot is not None else []
    listed = folded(f"{len(packages)} packages", tag("pre", "\n".join(packages))) if packages else Markup()
    return together(facts(pairs), listed)


def _again(result: ExperimentResult) -> Markup:
    settings = as_said(result.effective_config)
    if not settings:
        return paragraph("The result does not hold its configuration.")
    remark = "The configuration as it was in effect, what the engine chose by itself filled in. As experiment.yaml:"
    return run_again("llem run experiment.yaml", as_yaml(settings), remark)


def _files(result: ExperimentResult, directory: Path) -> Markup:
    named = [RESULT_FILE, *(name for name in (result.timeseries, result.trace, result.outputs) if name is not None)]
    there = [name for name in map(_name_alone, named) if (directory / name).is_file()]
    gone = [name for name in map(_name_alone, named) if name not in there]
    entries = tag("ul", *(tag("li", link(name, quote(name))) for name in there), class_="ways")
    return together(entries, paragraph(f"Missing: {', '.join(gone)}.", class_="note") if gone else markup(""))


def _name_alone(name: str) -> str:
    return Path(name).name
