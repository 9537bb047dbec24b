"""A result as text for people: aligned lines, sensible digits and units, and no figure that was not measured.

Model          Qwen/Qwen2.5-0.5B       pytorch 5.23.0, bf16, batch 8
Measured       2026-02-18 14:30 UTC    NVIDIA A100-SXM4-80GB, nvml
Energy         0.412 ± 0.021 J/token   5,273 J raw, 2,745 J above idle (61.2 W)
Throughput     310 output tok/s        12,800 tokens out, 36,900 in
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from llenergymeasure.domain.base import EnergyScope, as_utc
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.metrics import ratio, wh_per_1000
from llenergymeasure.domain.readable import counted, percent
from llenergymeasure.domain.readable import duration as duration
from llenergymeasure.domain.readable import in_units as in_units
from llenergymeasure.domain.readable import joules as joules
from llenergymeasure.domain.readable import one_line as one_line
from llenergymeasure.domain.readable import quantity as quantity
from llenergymeasure.domain.readable import with_half_width as with_half_width
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.results.export import batch_size, model_of
from llenergymeasure.results.persistence import REPORT_FILE

_LABEL_WIDTH = 15
_CELL_WIDTH = 24
SCOPE_NAMES: Final[Mapping[EnergyScope, str]] = {
    "gpu": "GPU",
    "gpu_module": "GPU module, its CPU included",
    "gpu_board": "whole board of a MIG slice",
    "cpu_package": "CPU packages",
    "cpu_package_and_dram": "CPU packages and DRAM",
    "machine_model": "CPU and RAM",
    "machine": "whole machine",
}
"""What the energy is of."""

METHODS: Final[Mapping[str, str]] = {
    "hardware_counter": "difference of the hardware's energy counter",
    "power_integration": "integral of power samples",
    "model_estimate": "estimated by a model of the machine, not measured",
}
"""How the energy was found."""

_METHODOLOGY_NAMES = {"total": " without warm-up", "windowed": " of part of the generation (windowed)"}
"""What is said beside the window; one after a warm-up, and of all of it, goes without saying."""


def render_summary(result: ExperimentResult, path: Path | None = None, width: int | None = None) -> str:
    """The summary block of one result, without a final newline.

    Args:
        path: Where it was saved; named in the last lines, with the report beside it if there is one.
        width: Columns to wrap at; `None` keeps every entry on one line. A path is never broken.
    """
    entries = [
        ("Model", _cells(model_of(result) or "not known", _engine(result))),
        ("Measured", _cells(minute(result.start_time), _device_and_meter(result))),
        ("Energy", _cells(_energy(result), _energy_detail(result))),
        ("Throughput", _cells(f"{quantity(result.avg_tokens_per_second)} output tok/s", _tokens(result))),
        ("Latency", _cells(*_latencies(result))),
        ("Phases", _phases(result)),
        ("Requests", _requests(result)),
        ("At scale", _at_scale(result)),
        ("Footprint", _emissions_and_cost(result)),
        ("Duration", _duration(result)),
        ("FLOPs", _flops(result)),
    ]
    lines = [_entry(label, text, width) for label, text in entries if text]
    for index, warning in enumerate(result.measurement_warnings or ["none"]):
        lines.append(_entry("" if index else "Warnings", warning, width))
    if path is not None:
        lines.append(_entry("Result", str(path), None))
        if (report := path.with_name(REPORT_FILE)).is_file():
            lines.append(_entry("Report", str(report), None))
    return "\n".join(lines)


def headline(result: ExperimentResult) -> str:
    """One line about a result: what was measured, its two primary figures, when, and how many warnings there are."""
    parts = [
        energy_per_token(result),
        f"{quantity(result.avg_tokens_per_second)} output tok/s",
        minute(result.start_time),
    ]
    if doubts := len(result.measurement_warnings):
        parts.append(counted(doubts, "warning"))
    return f"{name_of(result)}: {', '.join(parts)}"


def name_of(result: ExperimentResult) -> str:
    """What a result is called where there are several."""
    return result.config_name or model_of(result) or result.experiment_id


def energy_per_token(result: ExperimentResult) -> str:
    """`0.412 ± 0.021 J/token`, an estimate called one."""
    return _energy(result) + (" (estimated)" if result.is_estimate else "")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def minute(moment: datetime) -> str:
    """A moment for people: `2026-02-18 14:30 UTC`."""
    return f"{as_utc(moment):%Y-%m-%d %H:%M} UTC"


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


def _engine(result: ExperimentResult) -> str:
    batch, processes = batch_size(result), len(result.process_results)
    parts = [f"{result.backend} {result.backend_version or ''}".rstrip()]
    if precision := result.effective_config.get("precision"):
        parts.append(str(precision))
    if batch is not None:
        parts.append(f"batch {batch}")
    if processes > 1:
        parts.append(f"{processes} processes")
    return ", ".join(parts)


def _device_and_meter(result: ExperimentResult) -> str:
    boundary, snapshot, breakdown = result.measurement_boundary, result.environment_snapshot, result.energy_breakdown
    names = boundary.device_names if boundary is not None else []
    if snapshot is not None and (cpu := snapshot.cpu) is not None and cpu.model and names == ["CPU"]:
        names = [cpu.model]
    elif snapshot is not None and not names:
        names = snapshot.gpu_names
    parts = [f"{count} × {name}" if count > 1 else name for name, count in Counter(names).items()]
    if breakdown is not None and breakdown.meter is not None:
        parts.append(f"meter: {breakdown.meter}")
    return ", ".join(parts)


def _duration(result: ExperimentResult) -> str:
    kind = _METHODOLOGY_NAMES.get(result.measurement_methodology, "")
    return f"{duration(result.total_inference_time_sec)} window{kind}, {duration(result.duration_sec)} in all"


def _at_scale(result: ExperimentResult) -> str:
    requests_wh = wh_per_1000(ratio(result.total_energy_j, result.num_requests))
    per_token = ratio(result.cost, result.output_tokens)
    parts = []
    if requests_wh is not None:
        parts.append(f"{in_units(requests_wh, 'Wh')} per 1,000 requests")
    if per_token is not None:
        parts.append(f"{quantity(1e6 * per_token)} {result.currency or ''}".rstrip() + " per 1 M output tokens")
    return ", ".join(parts)


def _energy(result: ExperimentResult) -> str:
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
    if breakdown and breakdown.scope not in (None, "gpu"):  # plain GPU energy goes without saying
        parts.append(SCOPE_NAMES[breakdown.scope])
    if result.is_estimate:
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
    prefill, decode = (percent(part / result.total_energy_j) for part in (prefill_j, decode_j))
    return f"prefill {prefill} of energy, decode {decode}"


def _requests(result: ExperimentResult) -> str | None:
    told = result.request_energy
    if told is None or told.energy_j is None:
        return None
    return f"{joules(told.energy_j.p50)} median, {joules(told.energy_j.p95)} p95"


def _emissions_and_cost(result: ExperimentResult) -> str | None:
    if result.co2_g is None and result.cost is None:
        return None
    parts = []
    if result.co2_g is not None:
        parts.append(in_units(result.co2_g, "g CO2e"))
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
