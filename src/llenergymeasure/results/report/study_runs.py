"""What a study's table tells of its runs: the figures of each, and what all of them were measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.domain.study import StudyResult
from llenergymeasure.results.persistence import TABLE_FILE
from llenergymeasure.results.summary import METHODS, SCOPE_NAMES

if TYPE_CHECKING:
    import pyarrow

MAX_VALUES: Final = 12
"""Values of a fact that are named; others are counted."""

_FIGURES: Final = ("measurement_config_hash", "cycle", "energy_per_token_j", "tokens_per_second")

_SURROUNDINGS: Final[Mapping[str, Sequence[str]]] = {
    "Model": ("model",),
    "Engine": ("backend", "backend_version"),
    "GPUs": ("gpu",),
    "Meter": ("energy_meter",),
    "Method": ("energy_method",),
    "Metered": ("energy_scope",),
    "Data set": ("dataset",),
    "Its SHA-256": ("dataset_sha256",),
    "Prompts": ("num_requests",),
    "Runner": ("runner",),
    "Node": ("node",),
}
"""Columns that say what was measured, and on what, by what they are called."""

_NAMES: Final[Mapping[str, Mapping[Any, str]]] = {"energy_method": METHODS, "energy_scope": SCOPE_NAMES}


@dataclass(frozen=True, slots=True)
class Run:
    """What the page needs of one run.

    Args:
        file: Its result, relative to the study's directory.
    """

    config_hash: str
    cycle: int | None
    energy_j: float | None
    speed: float | None
    file: str


def runs_of(result: StudyResult, directory: Path) -> Iterator[Run]:
    """Every run with a result, from the table, whose rows are in the order of the result files."""
    rows = _rows(result, directory, _FIGURES)
    for (config_hash, cycle, energy_j, speed), file in zip(rows, result.result_files, strict=False):
        yield Run(config_hash, cycle, energy_j, speed, file)


def surroundings(result: StudyResult, directory: Path) -> list[tuple[str, str]]:
    """What was measured and on what: each fact with its values, the first that runs had first."""
    seen: dict[str, dict[str, None]] = {name: {} for name in _SURROUNDINGS}
    columns = list(dict.fromkeys(column for columns in _SURROUNDINGS.values() for column in columns))
    for row in _rows(result, directory, columns):
        told = dict(zip(columns, row, strict=True))
        for name, of in _SURROUNDINGS.items():
            words = [_word(column, told[column]) for column in of if told[column] is not None]
            if words:
                seen[name][" ".join(words)] = None
    return [(name, _listed(list(values))) for name, values in seen.items()]


def _rows(result: StudyResult, directory: Path, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    """Rows of the table, some in memory at a time; none of a table that cannot be read, or is of other runs.

    What a release did not write yet is null.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(directory / TABLE_FILE) as file:
            if file.metadata.num_rows != len(result.result_files):
                return
            there = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=there):
                yield from zip(*(_values(batch, name) for name in columns), strict=True)
    except (OSError, pyarrow.ArrowException):
        return


def _values(batch: pyarrow.RecordBatch, name: str) -> list[Any]:
    return list(batch[name].to_pylist()) if name in batch.schema.names else [None] * batch.num_rows


def _word(column: str, value: Any) -> str:
    return str(_NAMES.get(column, {}).get(value, value))


def _listed(values: Sequence[str]) -> str:
    more = len(values) - MAX_VALUES
    return "; ".join([*values[:MAX_VALUES], *([f"and {more} more"] if more > 0 else [])])
