"""The charts of one experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llenergymeasure.domain.latency import Histogram, Percentiles
from llenergymeasure.domain.readable import quantity
from llenergymeasure.results.report.charts import INK, MUTED, NARROW_PT, SERIES, chart, margins
from llenergymeasure.results.report.page import Markup
from llenergymeasure.results.report.power import DeviceSeries, WindowSeries, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFILL_COLOUR: Final = 1
DECODE_COLOUR: Final = 0

_ROWS: Final = {"power_w": "Power (W)", "temperature_c": "Temperature (°C)", "sm_clock_mhz": "SM clock (MHz)"}
_POWER_ROW_PT: Final = 190.0
_OTHER_ROW_PT: Final = 74.0
_LEGEND_COLUMNS: Final = {False: 8, True: 3}
"""Of a wide chart, of a narrow one."""
_ROW_GAP_PT: Final = 26.0
_LEGEND_ROW_PT: Final = 14.0

_LINES: Final = ("-", (0, (5, 2)), (0, (1, 1.5)))
"""Kinds of lines for boards beyond as many as there are colours."""

_LEAST_SPAN: Final = 0.02
"""Width of a histogram's axis as a share of what it shows, at least: a millionth between two values is no spread."""


def power_chart(series: WindowSeries, idle_w: float | None, description: str) -> Markup:
    """Power, temperature and clock of each device over the window, with its phases and its ends.

    Args:
        idle_w: Idle power of one device; `None`: not known, or not of one.
    """
    rows = [row for row in _ROWS if any(device.knows(row) for device in series.devices)]
    entries = _legend_entries(series, idle_w)
    legend_rows = [math.ceil(entries / columns) for columns in _LEGEND_COLUMNS.values()]
    top_pts = [20 + _LEGEND_ROW_PT * max(1, count) for count in legend_rows]
    height_pt = _POWER_ROW_PT + (len(rows) - 1) * (_OTHER_ROW_PT + _ROW_GAP_PT) + 36

    def draw(figure: Figure, width_pt: float) -> None:
        narrow = width_pt <= NARROW_PT
        ratios = [_POWER_ROW_PT if row == "power_w" else _OTHER_ROW_PT for row in rows]
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0].tolist()
        margins(figure, left=42, right=8, top=top_pts[narrow], bottom=36, gap=_ROW_GAP_PT)
        for axes, row in zip(grid, rows, strict=True):
            _draw_row(axes, row, series)
        _mark_window(grid, series)
        if rows[0] == "power_w":
            _finish_power(grid[0], idle_w, _LEGEND_COLUMNS[narrow])
        grid[-1].set_xlabel("Seconds from the window's start")

    heights = height_pt + top_pts[False], height_pt + top_pts[True]
    return chart("power", draw, heights, "Power over time", description)


def _legend_entries(series: WindowSeries, idle_w: float | None) -> int:
    """How many things the legend of the power chart names."""
    boards = len(series.devices) if len(series.devices) > 1 else 0
    return boards + sum(bool(series.stretches.get(phase)) for phase in ("prefill", "decode")) + (idle_w is not None)


def _draw_row(axes: Axes, row: str, series: WindowSeries) -> None:
    for number, device in enumerate(series.devices):
        if device.knows(row):
            times_s, values = thinned(device.times_s, device.readings[row])
            drawstyle = "default" if row == "power_w" or not series.raw else "steps-post"
            alone = len(times_s) == 1
            label = f"GPU {number}" if len(series.devices) > 1 else None
            axes.plot(
                times_s,
                values,
                color=SERIES[number % len(SERIES)] if len(series.devices) > 1 else INK,
                linewidth=1.2,
                linestyle=_LINES[number // len(SERIES) % len(_LINES)],
                drawstyle=drawstyle,
                marker="o" if alone else None,
                label=label,
            )
    axes.set_title(_ROWS[row], color=MUTED)
    axes.margins(x=0.01, y=0.15)
    axes.locator_params(axis="y", nbins=5 if row == "power_w" else 3)


def _mark_window(grid: Sequence[Axes], series: WindowSeries) -> None:
    start_s, end_s = _counted(series)
    for axes in grid:
        for edge_s in (start_s, end_s):
            axes.axvline(edge_s, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        for name, colour, alpha in (("prefill", PREFILL_COLOUR, 0.34), ("decode", DECODE_COLOUR, 0.13)):
            spans = [(from_s, to_s - from_s) for from_s, to_s in series.stretches.get(name, ())]
            if spans and axes is grid[0]:
                axes.broken_barh(
                    spans,
                    (0, 1),
                    transform=axes.get_xaxis_transform(),
                    color=SERIES[colour],
                    alpha=alpha,
                    linewidth=0,
                    label=name,
                )


def _counted(series: WindowSeries) -> tuple[float, float]:
    counted = series.stretches.get("counted") or [(0.0, series.window_s)]
    return counted[0][0], counted[-1][1]


def _finish_power(axes: Axes, idle_w: float | None, columns: int) -> None:
    if idle_w is not None:
        axes.axhline(idle_w, color=SERIES[2], linewidth=1.2, linestyle=(0, (5, 3)), label="idle power")
    axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower right",
            bbox_to_anchor=(1.0, 0.99),
            ncols=columns,
            borderaxespad=0,
            fontsize=9,
            handlelength=1.4,
            columnspacing=1.0,
        )


def latency_chart(latencies: Sequence[tuple[str, Histogram, Percentiles]], description: str) -> Markup:
    """Distributions of latencies, each with its median and its 95th percentile."""
    height_pt = 210.0, 60 + 165.0 * len(latencies)

    def draw(figure: Figure, width_pt: float) -> None:
        narrow = width_pt <= NARROW_PT
        rows, columns = (len(latencies), 1) if narrow else (1, len(latencies))
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        if narrow:
            margins(figure, left=38, right=10, top=24, bottom=36, gap=66)
        else:
            figure.subplots_adjust(left=0.055, right=0.985, top=0.86, bottom=0.18, wspace=0.22)
        for axes, (name, told, percentiles) in zip(grid, latencies, strict=True):
            _draw_histogram(axes, told, percentiles, "ms")
            axes.set_title(name, color=INK, pad=10)

    return chart("latency", draw, height_pt, "Distribution of latencies", description)


def request_energy_chart(told: Histogram, percentiles: Percentiles, unit: str, description: str) -> Markup:
    """Distribution of the joules of single requests."""

    def draw(figure: Figure, width_pt: float) -> None:
        axes = figure.subplots()
        margins(figure, left=42, right=10, top=24, bottom=36)
        _draw_histogram(axes, told, percentiles, unit)

    return chart("requests", draw, 220.0, "Energy of a request", description)


def _draw_histogram(axes: Axes, told: Histogram, percentiles: Percentiles, unit: str) -> None:
    low, high = told.bin_edges[0], told.bin_edges[-1]
    edges = told.bin_edges if low < high else _around(low)
    axes.stairs(told.counts, edges, fill=True, facecolor=SERIES[0], edgecolor=SERIES[0], linewidth=0.8, alpha=0.75)
    if high - low < _LEAST_SPAN * abs(high):
        low, high = _around((low + high) / 2)
        axes.set_xlim(low, high)
    top = max(told.counts) * 1.3  # room for the two labels
    axes.set_ylim(0, top)
    axes.set_xlabel(unit)
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.locator_params(axis="x", nbins=5)
    for name, value, height in (("median", percentiles.p50, 0.97), ("p95", percentiles.p95, 0.87)):
        axes.axvline(value, ymax=height, color=INK, linewidth=1.0, linestyle="-" if name == "median" else (0, (3, 2)))
        right = value > (low + high) / 2
        axes.annotate(
            f"{name} {quantity(value)}",
            (value, height * top),
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            fontsize=9,
        )


def _around(value: float) -> tuple[float, float]:
    """Edges of a bin for a value that all have, or nearly."""
    half = abs(value) * _LEAST_SPAN or 0.5
    return value - half, value + half


def spoken(device: DeviceSeries, series: WindowSeries) -> str:
    """What the power of a device did, in words."""
    known = [value for value in device.readings["power_w"] if math.isfinite(value)]
    kind = "samples" if series.raw else "means of a second"
    return (
        f"{device.name}: {len(known)} {kind}, lowest {quantity(min(known))} W, highest {quantity(max(known))} W"
        if known
        else f"{device.name}: no power was told"
    )
