"""Past results as a table: `python -m llenergymeasure.results DIR`.

Measured              J/token                tok/s  Warnings  Configuration                   Result
2026-02-18 14:30 UTC  0.412 ± 0.021 J/token  310    2         qwen2.5-0.5b / pytorch / bf16   results/…/result.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llenergymeasure.domain.base import as_utc
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.warnings import codes_of
from llenergymeasure.results.found import results_below
from llenergymeasure.results.persistence import RESULT_FILE
from llenergymeasure.results.summary import aligned, energy_per_token, minute, name_of, quantity
from llenergymeasure.security import for_display
from llenergymeasure.stdout import print_or_complain, run_program

HEADER = ("Measured", "J/token", "tok/s", "Warnings", "Configuration", "Result")


def main(arguments: Sequence[str] | None = None) -> int:
    """List the results below directories on standard output, the oldest first.

    Returns:
        0; 1 where there is none, or the list cannot be written.
    """
    parser = argparse.ArgumentParser(prog="python -m llenergymeasure.results", description="List past results.")
    parser.add_argument("directory", nargs="*", type=Path, default=[Path("results")], help="default: results")
    directories: list[Path] = parser.parse_args(arguments).directory
    found = sorted((as_utc(result.start_time), _row(path, result)) for path, result in results_below(directories))
    if not found:
        sys.stderr.write(f"No {RESULT_FILE} below {', '.join(map(str, directories))}.\n")
        return 1
    lines = aligned([HEADER, *(row for _, row in found)])
    return 0 if print_or_complain(for_display("\n".join(lines)) + "\n") else 1


def _row(path: Path, result: ExperimentResult) -> tuple[str, ...]:
    return (
        minute(result.start_time),
        energy_per_token(result),
        quantity(result.avg_tokens_per_second),
        str(len(codes_of(result.measurement_warnings))),
        name_of(result),
        str(path),
    )


if __name__ == "__main__":
    run_program(main)
