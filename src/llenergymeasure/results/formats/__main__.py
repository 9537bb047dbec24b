"""Results for other tools: `python -m llenergymeasure.results.formats DIR … --to prometheus|benchmark-report|mlflow`.

A text goes to standard output, or whole and in one step to a file: a text-file collector never sees half of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from llenergymeasure.atomic import write_bytes_atomically
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.formats.benchmark_report import benchmark_reports
from llenergymeasure.results.formats.mlflow_runs import log_runs
from llenergymeasure.results.formats.prometheus import prometheus_text
from llenergymeasure.results.found import each_once, results_below
from llenergymeasure.results.persistence import RESULT_FILE
from llenergymeasure.security import user_path
from llenergymeasure.stdout import print_or_complain, run_program

TEXTS: Final[dict[str, Callable[[Iterable[ExperimentResult]], str]]] = {
    "prometheus": prometheus_text,
    "benchmark-report": benchmark_reports,
}
MLFLOW: Final = "mlflow"


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the results below directories over.

    Returns:
        0; 1 where there is none, or it cannot be handed over.
    """
    options = _parser().parse_args(arguments)
    found = each_once(results_below(options.directory))
    first = next(found, None)
    if first is None:
        sys.stderr.write(f"No {RESULT_FILE} below {', '.join(map(str, options.directory))}.\n")
        return 1
    results = chain([first], found)
    try:
        if options.to == MLFLOW:
            logged = log_runs(results, options.tracking_uri, options.experiment)
            printed = [print_or_complain(f"{path}: {became}\n") for path, became in logged]
            return 0 if all(printed) else 1
        return _write(TEXTS[options.to](result for _, result in results), options.output)
    except (PersistenceError, OSError) as error:  # a server that is not there
        sys.stderr.write(f"{error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llenergymeasure.results.formats", description="Past results in the formats of other tools."
    )
    parser.add_argument("directory", nargs="+", type=Path, help="every result below it is taken")
    parser.add_argument("--to", required=True, choices=[*TEXTS, MLFLOW])
    parser.add_argument("-o", "--output", type=Path, help="file for the text; default: standard output")
    parser.add_argument("--tracking-uri", help="MLflow: where runs go; default: as MLflow is set up")
    parser.add_argument("--experiment", default="llenergymeasure", help="MLflow: name of the experiment")
    return parser


def _write(text: str, output: Path | None) -> int:
    if output is None:
        return 0 if print_or_complain(text) else 1
    write_bytes_atomically(user_path(output), text.encode())
    return 0


if __name__ == "__main__":
    run_program(main)
