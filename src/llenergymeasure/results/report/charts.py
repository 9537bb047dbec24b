"""Charts by matplotlib as SVG that is part of a page: it takes the page's colours and font, by day, by night, on paper.

    chart("power", draw, height=300, title="Power over time", description="300 W, falling to 80 W")

`draw` fills a matplotlib figure and is called twice: for a page as wide as a desk has it, and for a phone. Colours are
named by the stand-ins below, which become the page's own. The same figures give the same bytes. Nothing of matplotlib
that others use is touched: no pyplot, no backend, no setting that outlives the drawing.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from llenergymeasure.results.report.page import Markup, tag
from llenergymeasure.security import for_display

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK: Final = "#f1e001"
MUTED: Final = "#f1e002"
LINE: Final = "#f1e003"
PAPER: Final = "#f1e004"
SERIES: Final = tuple(f"#f1e01{number}" for number in range(8))
"""Colours of things that are told apart, as far as there are names for them."""

_COLOURS: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    **{stand_in: f"var(--s{number})" for number, stand_in in enumerate(SERIES)},
}

WIDE_PT: Final = 720.0
NARROW_PT: Final = 340.0

_SETTINGS: Final = {
    "svg.fonttype": "none",  # text stays text: to read aloud, to search, to copy
    "svg.hashsalt": "llenergymeasure",
    "text.parse_math": False,  # a name with a $ in it is no formula
    "font.family": ["DejaVu Sans"],  # comes with matplotlib; the page's own font is narrower
    "font.size": 10.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.4,
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
    "hatch.linewidth": 0.6,
}

MAX_TAB_STOPS: Final = 60
"""Points that the Tab key visits, of a chart that marks no few of them as those that matter."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A point that tells what it is when it is pointed at, or reached with the Tab key.

    Args:
        x, y: In the units of the axes.
        colour: A stand-in.
        matters: Whether the Tab key stops at it also where there are many.
    """

    axes: Axes
    x: float
    y: float
    text: str
    colour: str
    radius_pt: float = 4.5
    matters: bool = True


Draw = Callable[["Figure", float], Sequence[Spot] | None]
"""Fills a figure that is so many points wide; returns the spots in it."""


def chart(name: str, draw: Draw, height: float | tuple[float, float], title: str, description: str) -> Markup:
    """A chart for wide pages and one for narrow ones, of which a page shows one.

    Args:
        name: Unique within the page.
        height: In points; of both, or of the wide and of the narrow one.
        title: Read aloud in place of the drawing, as is `description`.
    """
    wide_pt, narrow_pt = height if isinstance(height, tuple) else (height, height)
    drawings = [
        tag("div", _drawn(f"{name}-{kind}", draw, width_pt, height_pt, title, description), class_=f"chart {kind}")
        for kind, width_pt, height_pt in (("wide", WIDE_PT, wide_pt), ("narrow", NARROW_PT, narrow_pt))
    ]
    return Markup("".join(drawings))


def plain_ticks(axis: Axis) -> None:
    """Figures on an axis as they are, on a logarithmic one too: matplotlib's own powers of ten are formulas."""
    axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    axis.set_minor_formatter(lambda value, _: "")


def make_room(axes: Axes, ends: Iterable[float]) -> None:
    """Widen the horizontal axis to hold these too, at most to three times what it is: intervals have no bounds."""
    left, right = axes.get_xlim()
    known = [left, right, *ends]
    beside = 0.03 * (max(known) - min(known)) if len(known) > 2 else 0.0
    axes.set_xlim(max(min(known) - beside, 2 * left - right), min(max(known) + beside, 2 * right - left))


def margins(figure: Figure, left: float, right: float, top: float, bottom: float, gap: float = 0.0) -> None:
    """Space around the axes of a figure, and between those of several rows, in points."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    rows = max(1, len(figure.axes))
    each = (height - top - bottom - gap * (rows - 1)) / rows
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        hspace=gap / each,
    )


def _drawn(name: str, draw: Draw, width_pt: float, height_pt: float, title: str, description: str) -> Markup:
    with _own_settings():
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width_pt / 72, height_pt / 72), dpi=72)
        canvas = FigureCanvasSVG(figure)
        spots = draw(figure, width_pt) or ()
        file = io.StringIO()
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        drawn_spots = "".join(_spots(spots, height_pt))
    return Markup(_as_part_of_a_page(file.getvalue(), name, title, description, drawn_spots))


@contextmanager
def _own_settings() -> Iterator[None]:
    """Matplotlib as it comes, with our settings, for the length of a `with` block: whatever the user's are."""
    with _silenced(logging.getLogger("matplotlib")):  # of its own cache, and where it had to put it
        _load_matplotlib()
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")  # the browser has a font for it
        matplotlib.rcParams.update(
            {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
        )
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _load_matplotlib() -> None:
    """Import it, also where `MPLBACKEND` names what it does not know, as in a command that a notebook runs.

    With a backend that it knows, it is as after any import.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib.font_manager
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


@contextmanager
def _silenced(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _spots(spots: Sequence[Spot], height_pt: float) -> Iterator[str]:
    many = len(spots) > MAX_TAB_STOPS
    for spot in spots:
        x_pt, y_pt = spot.axes.transData.transform((spot.x, spot.y))
        text = escape(for_display(spot.text))
        reached = "" if many and not spot.matters else f' tabindex="0" role="img" aria-label="{text}"'
        yield (
            f'<circle class="spot"{reached} cx="{x_pt:.1f}" cy="{height_pt - y_pt:.1f}" r="{spot.radius_pt:g}" '
            f'style="fill:{_COLOURS[spot.colour]}"><title>{text}</title></circle>'
        )


def _as_part_of_a_page(svg: str, name: str, title: str, description: str, spots: str) -> str:
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"#f1e0[0-9a-f]{2}", lambda found: _COLOURS[found[0]], svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<!--.*?-->\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\n\s*", "\n", svg)
    names = f"<title id='{name}-t'>{escape(title)}</title><desc id='{name}-d'>{escape(for_display(description))}</desc>"
    size = re.search(r'viewBox="([^"]+)"', svg)
    opening = (
        f'<svg viewBox="{size[1] if size else ""}" role="{"group" if spots else "img"}" '
        f'aria-labelledby="{name}-t" aria-describedby="{name}-d">{names}'
    )
    return re.sub(r"<svg[^>]*>", lambda found: opening, svg, count=1).replace("</svg>", f"{spots}</svg>")
