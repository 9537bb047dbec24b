"""What a large study takes of memory does not grow with its number of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.results.export import ROWS_AT_ONCE, to_csv
from llenergymeasure.results.persistence import to_parquet
from llenergymeasure.results.statistics import summarise_configurations
from memory import peak_bytes
from result_samples import make_rich_result

SMALL, LARGE = 2 * ROWS_AT_ONCE, 6 * ROWS_AT_ONCE
MOST_BYTES_PER_RUN = 100
"""The three figures that statistics need, and room to spare; the row of a run takes several thousand."""

CONFIGURATIONS = 3
RESULT = make_rich_result()


@dataclass(frozen=True)
class Results:
    """So many results of a study, each made when it is looked at, as a study reads them from its files."""

    count: int

    def __iter__(self) -> Iterator[ExperimentResult]:
        for number in range(self.count):
            heat = number % CONFIGURATIONS
            config = {"model": "m", "decoder": {"temperature": heat}}
            yield RESULT.model_copy(update={"measurement_config_hash": f"{heat:016x}", "effective_config": config})


@pytest.mark.parametrize(
    "write",
    [
        lambda results, directory: to_parquet(results, directory / "results.parquet"),
        lambda results, directory: to_csv(results, directory / "results.csv"),
        lambda results, directory: summarise_configurations(results),
    ],
    ids=["parquet", "csv", "statistics"],
)
def test_the_end_of_a_study_keeps_no_more_of_a_run_than_its_figures(
    write: Callable[[Results, Path], object], tmp_path: Path
) -> None:
    write(Results(SMALL), tmp_path)  # what is imported and cached once
    small, large = (peak_bytes(partial(write, Results(count), tmp_path)) for count in (SMALL, LARGE))
    assert (large - small) / (LARGE - SMALL) < MOST_BYTES_PER_RUN, (small, large)
