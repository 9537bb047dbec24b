"""What a large study takes of memory does not grow with its number of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from llenergymeasure.config.models import StudyConfig
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.results.export import ROWS_AT_ONCE, to_csv
from llenergymeasure.results.persistence import to_parquet
from llenergymeasure.results.statistics import summarise_configurations
from llenergymeasure.study.manifest import ManifestWriter
from llenergymeasure.study.plan import plan_runs
from memory import peak_bytes
from result_samples import make_rich_result
from study_fakes import study_of

SMALL, LARGE = 2 * ROWS_AT_ONCE, 5 * ROWS_AT_ONCE
MOST_BYTES_PER_RUN = 100
"""The three figures that statistics need, and room to spare; the row of a run takes several thousand."""

CONFIGURATIONS = 3
RESULT = make_rich_result()


MOST_BYTES_PER_ENTRY = 800
"""An entry's line of JSON, written and to be written, and its place in the plan; as objects it takes twice as much."""


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


def test_a_checkpoint_keeps_no_more_of_a_run_than_its_line(tmp_path: Path) -> None:
    def keep(study: StudyConfig) -> None:
        writer = ManifestWriter(study, tmp_path)
        writer.mark_running(*plan_runs(study)[0].key)
        writer.mark_study_completed()

    studies = [study_of(*"abc", cycles=count // CONFIGURATIONS) for count in (SMALL, SMALL, LARGE)]
    _, small, large = (peak_bytes(partial(keep, study)) for study in studies)
    assert (large - small) / (LARGE - SMALL) < MOST_BYTES_PER_ENTRY, (small, large)
