"""The results below directories, whoever made them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import RESULT_FILE, ResultFileWarning, load_result


def results_below(directories: Sequence[Path]) -> Iterator[tuple[Path, ExperimentResult]]:
    """Every result that can be read, with its file; of each other one, a line on standard error."""
    for path in dict.fromkeys(path for directory in directories for path in directory.rglob(RESULT_FILE)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResultFileWarning)  # its figures need no time series
                result = load_result(path)
        except PersistenceError as error:
            sys.stderr.write(f"Left out: {error}\n")
            continue
        yield path, result
