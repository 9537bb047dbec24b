"""What all benchmarks share: a measured figure beside its target, a small table, and the exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Args:
        name: What was measured.
        value: The figure.
        unit: Its unit.
        target: Largest value that is still good; `None`: reported for the record.
        note: What it rests on.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""

    @property
    def misses(self) -> bool:
        return self.target is not None and self.value > self.target


def render(title: str, figures: Sequence[Figure]) -> str:
    """A table of figures and targets."""
    width = max(len(figure.name) for figure in figures)
    lines = [title]
    for figure in figures:
        if figure.target is None:
            verdict = ""
        else:
            verdict = f"target {figure.target:g} {figure.unit}  {'MISSED' if figure.misses else 'ok'}"
        value = f"{figure.value:10.3g} {figure.unit:<12}"
        lines.append(f"  {figure.name:<{width}}  {value}  {verdict:<28}  {figure.note}".rstrip())
    return "\n".join(lines)


def main(title: str, measure: Callable[[bool], Sequence[Figure]]) -> int:
    """Run a benchmark as a command.

    Args:
        title: First line of the table.
        measure: Does the work; its argument asks for a short run that only shows that it works.

    Returns:
        1 when `--check` was given and a target was missed, else 0.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it works, not how fast")
    arguments = parser.parse_args()
    figures = measure(arguments.quick)
    print(render(title, figures))
    return int(arguments.check and any(figure.misses for figure in figures))
