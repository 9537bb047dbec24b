"""Makes the report of an old result, or of a study, anew: `python -m llenergymeasure.results.report DIR`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import STUDY_FILE, load_study
from llenergymeasure.results.report.write import holds, write_report
from llenergymeasure.security import is_safe_path
from llenergymeasure.stdout import print_or_complain, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `report.html` into each directory; of a study's, those of its runs too.

    Returns:
        0; 1 where one could not be made, of which standard error tells.
    """
    parser = argparse.ArgumentParser(
        prog="python -m llenergymeasure.results.report",
        description="Make the report of an experiment or of a study, from the files in its directory.",
    )
    parser.add_argument("directory", nargs="+", type=Path, help="of an experiment, or of a study and all its runs")
    parser.add_argument("--alone", action="store_true", help="of a study's reports, its own only")
    asked = parser.parse_args(arguments)
    made = [_made(place) for directory in asked.directory for place in _places(directory, alone=asked.alone)]
    return 0 if all(made) else 1


def _made(directory: Path) -> bool:
    """Make one report and name it; whether that went well, of which standard error tells otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the page says what is missing
            path = write_report(directory)
    except PersistenceError as error:
        sys.stderr.write(f"{error}\n")
        return False
    except Exception as error:  # noqa: BLE001 (what cannot be drawn costs no other report)
        sys.stderr.write(f"The report of {directory} could not be made: {type(error).__name__}: {error}\n")
        return False
    return print_or_complain(f"{path}\n")


def _places(directory: Path, *, alone: bool) -> list[Path]:
    """A study comes last, so that its links lead somewhere as soon as it is there."""
    try:
        if alone or not holds(directory, STUDY_FILE):
            return [directory]
        runs = [Path(file).parent for file in load_study(directory).result_files]
    except PersistenceError:  # it is told of when the report is made
        return [directory]
    own = (directory / run for run in runs if is_safe_path(directory, run))
    return [*(run for run in own if run.is_dir()), directory]


if __name__ == "__main__":
    run_program(main)
