"""The size and the shape of the package, from its source alone: `python scripts/house_figures.py [--budget] [SOURCE]`.

Lines of code are those left without blank lines, comments, docstrings and imports. A circle is a group of modules that
import each other; an upward import goes from a lower floor to a higher one. Call-time and `TYPE_CHECKING` imports count
like all others, except the declared ones: a result can save and show itself, a study finds its results.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "llenergymeasure"
SOURCE = Path(__file__).resolve().parents[1] / "src"

FLOORS = (
    "cli __main__",
    "_api protocols",
    "study",
    "runners",
    "core results",
    "datasets builtin_models",
    "config",
    "domain",
)
"""From the top down; what is not named lies below them all."""

DECLARED = {
    (f"{PACKAGE}.domain.experiment", f"{PACKAGE}.results.persistence"),
    (f"{PACKAGE}.domain.experiment", f"{PACKAGE}.results.summary"),
    (f"{PACKAGE}.domain.study", f"{PACKAGE}.domain.experiment"),
}

BUDGET = {"files": 247, "code lines": 23_870, "lines": 41_600, "longest file": 400, "circles": 0, "upward imports": 0}
"""What the house has come down to; a change that needs more says why where it raises a number."""


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    text: str
    tree: ast.Module


def modules(source: Path = SOURCE) -> dict[str, Module]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, text, ast.parse(text))
    return found


def code_lines(module: Module) -> int:
    """Lines with code on them: no blanks, comments, docstrings or imports."""
    coded: set[int] = set()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in silent:
            coded.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, (ast.Import, ast.ImportFrom)):
            coded.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(coded)


def imports(module: Module, names: Mapping[str, Module]) -> Iterator[str]:
    """Modules of the package that `module` imports, wherever in it."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if (found := full if full in names else node.module) in names:
                    yield found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each reaches every other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def floor(name: str) -> int:
    """How far from the top a module's floor is."""
    parts = name.split(".")
    return next((depth for depth, rooms in enumerate(FLOORS) if len(parts) > 1 and parts[1] in rooms.split()), 99)


def main() -> None:
    """Print the figures; with `--budget`, fail where one is over it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", action="store_true", help="exit with 1 where a figure is over the house's budget")
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE, help="directory that holds the package")
    asked = parser.parse_args()
    house = modules(asked.source)
    graph = {
        name: {other for other in imports(module, house) if other != name and (name, other) not in DECLARED}
        for name, module in house.items()
    }
    upward = [
        f"{name} -> {other}"
        for name, others in graph.items()
        for other in others
        if len(name.split(".")) > 1 and floor(other) < floor(name)
    ]
    found = circles(graph)
    lengths = {name: module.text.count("\n") for name, module in house.items()}
    longest = max(lengths, key=lambda name: lengths[name])
    figures = {
        "files": len(house),
        "lines": sum(lengths.values()),
        "code lines": sum(code_lines(module) for module in house.values()),
        "longest file": lengths[longest],
        "circles": len(found),
        "upward imports": len(upward),
    }
    for name, value in figures.items():
        print(f"{name:15} {value:>7,}" + (f"  ({longest})" if name == "longest file" else ""))
    for group in found:
        print("circle:", " ".join(group))
    for arrow in upward:
        print("upward:", arrow)
    over = [name for name, most in BUDGET.items() if figures[name] > most]
    if asked.budget and over:
        raise SystemExit(f"over budget: {', '.join(f'{name} > {BUDGET[name]:,}' for name in over)}")


if __name__ == "__main__":
    main()
