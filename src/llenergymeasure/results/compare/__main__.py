"""`python -m llenergymeasure.results.compare BASELINE CANDIDATE …`: what changed, by how much, and how sure that is.

Each directory is one side: all results below it, of one run, of a study, or of several. The first is the baseline.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from llenergymeasure.domain.comparison import Acceptable, Comparison
from llenergymeasure.exceptions import ComparisonError, LLEMError
from llenergymeasure.results.compare.comparison import compare
from llenergymeasure.results.compare.gate import Limits
from llenergymeasure.results.compare.sides import Side, read_side, split_side
from llenergymeasure.results.compare.text import render_comparison
from llenergymeasure.security import for_display
from llenergymeasure.stdout import print_or_complain, run_program

WORSE: Final = 1
"""Exit code: the gate found the candidate worse."""

REFUSED: Final = 2
"""Exit code: there is no comparison, or no decision."""

NARROWEST: Final = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print the comparison on standard output.

    Returns:
        0: compared, and not shown to be worse. `WORSE`, `REFUSED`.
    """
    given = _parser().parse_args(arguments)
    try:
        limits = Limits(given.fail_if_worse, given.fail_if_slower)
        comparison = compare(
            _sides(given.directory, given.by),
            ignore=given.ignore if given.by is None else (*given.ignore, given.by),
            accept=given.accept,
            limits=limits if limits.is_set else None,
        )
        if given.html is not None:
            from llenergymeasure.results.compare.page import comparison_page
            from llenergymeasure.results.report.write import write_page

            write_page(given.html, comparison_page(comparison))
    except LLEMError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    width = max(NARROWEST, shutil.get_terminal_size((120, 24)).columns)
    text = comparison.model_dump_json(indent=2) if given.json else for_display(render_comparison(comparison, width))
    return _exit_code(comparison) if print_or_complain(f"{text}\n") else REFUSED


def _sides(directories: Sequence[Path], by: str | None) -> list[Side]:
    sides = [read_side(directory) for directory in directories]
    if by is None:
        return sides
    if len(sides) > 1:
        raise ComparisonError("--by takes one directory apart; give one.")
    return split_side(sides[0], by)


def _exit_code(comparison: Comparison) -> int:
    outcome = None if comparison.gate is None else comparison.gate.outcome
    return {"worse": WORSE, "undecided": REFUSED}.get(outcome or "", 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llenergymeasure.results.compare",
        description="Compare runs and studies: the first directory with each of the others.",
        epilog="Exit code 0: compared, not shown to be worse; 1: shown to be worse; 2: no comparison, or no decision.",
    )
    add = parser.add_argument
    add("directory", nargs="+", type=Path, help="of runs or studies; the first is the baseline")
    add("--by", metavar="SETTING", help="take one directory apart by a setting's values")
    add("--ignore", type=_names, action="extend", default=[], metavar="SETTING,…", help="what may differ within a pair")
    add(
        "--accept",
        type=_kinds,
        action="extend",
        default=[],
        metavar="KIND,…",
        help=f"differences that are meant: {_KINDS}",
    )
    add("--fail-if-worse", type=float, metavar="PCT", help="exit 1 if J/token grew by more")
    add("--fail-if-slower", type=float, metavar="PCT", help="exit 1 if tok/s fell by more")
    add("--html", type=Path, metavar="FILE", help="write the comparison as a page, too")
    add("--json", action="store_true", help="print it as JSON")
    return parser


_KINDS: Final = ", ".join(get_args(Acceptable))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _kinds(text: str) -> tuple[str, ...]:
    kinds = _names(text)
    for kind in kinds:
        if kind not in get_args(Acceptable):
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {_KINDS}")
    return kinds


if __name__ == "__main__":
    run_program(main)
