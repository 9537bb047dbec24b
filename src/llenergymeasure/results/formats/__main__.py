"""Results for other tools: `python -m llenergymeasure.results.formats DIR … --to prometheus|benchmark-report|mlflow`.

A text goes to standard output, or whole and in one step to a file: a text-file collector never sees half of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from llenergymeasure.atomic import write_atomically
from llenergymeasure.domain.base import as_utc
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.formats.benchmark_report import benchmark_reports
from llenergymeasure.results.formats.mlflow_runs import log_runs
from llenergymeasure.results.formats.prometheus import prometheus_text
from llenergymeasure.results.found import results_below
from llenergymeasure.results.persistence import RESULT_FILE

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
    found = sorted(results_below(options.directory), key=lambda entry: as_utc(entry[1].start_time))
    if not found:
        sys.stderr.write(f"No {RESULT_FILE} below {', '.join(map(str, options.directory))}.\n")
        return 1
    try:
        if options.to == MLFLOW:
            for path, became in log_runs(found, options.tracking_uri, options.experiment):
                sys.stdout.write(f"{path}: {became}\n")
        else:
            _write(TEXTS[options.to](result for _, result in found), options.output)
    except (PersistenceError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


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


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(output, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    sys.exit(main())
