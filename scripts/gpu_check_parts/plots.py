"""Curves of a run as PNG, where matplotlib is installed; the numbers behind them are in `report.json` either way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

PER_FILE = 4
MOST_FILES = 4
"""The files that are handed back are few: several curves share one."""


def draw(series: Sequence[Mapping[str, Any]], out: Path) -> list[str]:
    """Draw all curves to `plots-<n>.png` in `out`; returns the files' names, none where matplotlib is missing."""
    if util.find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = []
    for at in range(0, min(len(series), PER_FILE * MOST_FILES), PER_FILE):
        chosen = series[at : at + PER_FILE]
        figure, axes = pyplot.subplots(len(chosen), 1, figsize=(9, 3 * len(chosen)), squeeze=False)
        for axis, one in zip(axes[:, 0], chosen, strict=True):
            for label, (x, y) in one["curves"].items():
                axis.plot(x, y, label=label, linewidth=0.8, marker="." if len(x) < 60 else None)
            axis.set(title=one["title"], xlabel=one["x"], ylabel=one["y"])
            axis.legend(fontsize="small")
        figure.tight_layout()
        names.append(f"plots-{at // PER_FILE + 1}.png")
        figure.savefig(out / names[-1], dpi=90)
        pyplot.close(figure)
    return names
