"""A result as text for people: aligned lines, sensible digits and units, and no figure that was not measured.

Energy         0.412 ± 0.021 J/token   5,273 J raw, 2,745 J above idle (61.2 W)
Throughput     310 output tok/s        12,800 tokens out, 36,900 in
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.warnings import WarningCode

_LABEL_WIDTH = 15
_CELL_WIDTH = 24
_SCOPE_NAMES = {
    "gpu_module": "GPU module, its CPU included",
    "gpu_board": "whole board of a MIG slice",
    "cpu_package": "CPU packages",
    "cpu_package_and_dram": "CPU packages and DRAM",
    "machine_model": "CPU and RAM",
}
"""What is said beside the energy; plain GPU energy goes without saying."""


def render_summary(result: ExperimentResult, path: Path | None = None, width: int | None = None) -> str:
    """The summary block of one result, without a final newline.

    Args:
        path: Where it was saved; named in the last line.
        width: Columns to wrap at; `None` keeps every entry on one line. A path is never broken.
    """
    entries = [
        ("Energy", _cells(_energy_per_token(result), _energy_detail(result))),
        ("Throughput", _cells(f"{quantity(result.avg_tokens_per_second)} output tok/s", _tokens(result))),
        ("Latency", _cells(*_latencies(result))),
        ("Phases", _phases(result)),
        ("Footprint", _emissions_and_cost(result)),
        ("Duration", f"{duration(result.total_inference_time_sec)} window, {duration(result.duration_sec)} in all"),
        ("FLOPs", _flops(result)),
    ]
    lines = [_entry(label, text, width) for label, text in entries if text]
    for index, warning in enumerate(result.measurement_warnings or ["none"]):
        lines.append(_entry("" if index else "Warnings", warning, width))
    if path is not None:
        lines.append(_entry("Result", str(path), None))
    return "\n".join(lines)


def quantity(value: float) -> str:
    """A figure with three significant digits below 1000, and thousands separated above."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.3g}"
    rounded = float(f"{value:.3g}")  # 9.996 is 10.0, not 10.00
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}"


def joules(value: float, suffix: str = "", half_width: float | None = None) -> str:
    """An energy in joules, in millijoules below 0.01 J, with its 95 % half-width where it is known.

    Args:
        suffix: What follows the unit, e.g. `/token`.
    """
    factor, unit = (1e3, "mJ") if 0 < abs(value) < 0.01 else (1.0, "J")
    scaled = value * factor
    if half_width is None:
        return f"{quantity(scaled)} {unit}{suffix}"
    return f"{with_half_width(scaled, half_width * factor)} {unit}{suffix}"


def with_half_width(value: float, half_width: float) -> str:
    """A figure and the half-width of its interval, at least 0: `0.412 ± 0.021`, `94 ± 326`.

    Both in the same digits: those of `quantity`, fewer where two digits of the half-width say all that is known (JCGM
    100:2008, 7.2.6).
    """
    text = quantity(value)
    if "e" in text:
        return f"{text} ± {half_width:.2g}"
    decimals = len(text.partition(".")[2])
    if half_width > 0:
        decimals = max(0, min(decimals, 1 - math.floor(math.log10(half_width))))
    spread = f"{half_width:,.{decimals}f}"
    if half_width > 0 and float(spread.replace(",", "")) == 0:
        spread = f"{half_width:.1g}"
    return f"{value:,.{decimals}f} ± {spread}"


def one_line(text: str) -> str:
    """A message of several lines as one, for lists and tables."""
    return " ".join(text.split())


def duration(seconds: float) -> str:
    """A length of time: `41.3 s`, `2 m 44 s`, `1 h 03 m`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def _cells(first: str = "", second: str = "") -> str:
    """Two columns, the second one aligned with that of the other lines."""
    return f"{first:<{_CELL_WIDTH - 2}}  {second}" if second else first


def _entry(label: str, text: str, width: int | None) -> str:
    """A label and its text; what does not fit into `width` goes on below, a little further in."""
    first = f"{label:<{_LABEL_WIDTH}}"
    if width is None or len(first) + len(text) <= width or not text.strip():
        return first + text
    return textwrap.fill(
        text,
        max(width, _LABEL_WIDTH + _CELL_WIDTH),
        initial_indent=first,
        subsequent_indent=" " * (_LABEL_WIDTH + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _energy_per_token(result: ExperimentResult) -> str:
    if result.avg_energy_per_token_j is None:
        return "not measured"
    half_width = result.uncertainty.absolute_per_token_j if result.uncertainty else None
    return joules(result.avg_energy_per_token_j, "/token", half_width)


def _energy_detail(result: ExperimentResult) -> str:
    if result.total_energy_j is None:
        return _reason(result, WarningCode.ENERGY_UNAVAILABLE)
    parts = [f"{joules(result.total_energy_j)} raw"]
    if result.energy_adjusted_j is not None:
        idle = f" ({quantity(result.baseline_power_w)} W)" if result.baseline_power_w is not None else ""
        parts.append(f"{joules(result.energy_adjusted_j)} above idle{idle}")
    breakdown = result.energy_breakdown
    if breakdown and breakdown.scope in _SCOPE_NAMES:
        parts.append(_SCOPE_NAMES[breakdown.scope])
    if breakdown and breakdown.method == "model_estimate":
        parts.append("estimated")
    return ", ".join(parts)


def _reason(result: ExperimentResult, code: WarningCode) -> str:
    """Where the reader finds why a figure is missing."""
    said = any(warning.startswith(f"{code.value}:") for warning in result.measurement_warnings)
    return "see the warning below" if said else ""


def _tokens(result: ExperimentResult) -> str:
    if result.output_tokens is None or result.input_tokens is None:
        return f"{result.total_tokens:,} tokens in and out"
    return f"{result.output_tokens:,} tokens out, {result.input_tokens:,} in"


def _latencies(result: ExperimentResult) -> list[str]:
    stats = result.latency_stats
    if stats is None:
        return []
    shown = {"TTFT": stats.ttft_ms, "ITL": stats.itl_ms}
    if stats.ttft_ms is None and stats.itl_ms is None:
        shown = {"end to end": stats.e2e_ms}
    return [f"{name} {quantity(ms.mean)} ms (p95 {quantity(ms.p95)})" for name, ms in shown.items() if ms is not None]


def _phases(result: ExperimentResult) -> str | None:
    phases = result.phases
    if phases is None:
        return None
    prefill_j = phases.prefill.energy_j if phases.prefill else None
    decode_j = phases.decode.energy_j if phases.decode else None
    if prefill_j is None or decode_j is None or not result.total_energy_j:
        pointer = _reason(result, WarningCode.PHASES_NOT_RESOLVED)
        return _cells("not resolved", pointer or phases.reason) if phases.reason else None
    prefill, decode = (100 * part / result.total_energy_j for part in (prefill_j, decode_j))
    return f"prefill {prefill:.0f} % of energy, decode {decode:.0f} %"


def _emissions_and_cost(result: ExperimentResult) -> str | None:
    if result.co2_g is None and result.cost is None:
        return None
    parts = []
    if result.co2_g is not None:
        parts.append(f"{quantity(result.co2_g)} g CO2e")
    if result.carbon_intensity_gco2_kwh is not None:
        parts.append(f"{quantity(result.carbon_intensity_gco2_kwh)} g/kWh")
    if result.cost is not None:
        parts.append(f"{quantity(result.cost)} {result.currency or ''}".rstrip())
    if result.pue is not None and result.pue != 1.0:
        parts.append(f"PUE {quantity(result.pue)}")
    return ", ".join(parts)


def _flops(result: ExperimentResult) -> str | None:
    if result.total_flops is None:
        return None
    how = f" ({result.flops.method}, {result.flops.confidence} confidence)" if result.flops else ""
    return f"{result.total_flops:.1e}{how}"
