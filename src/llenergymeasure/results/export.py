"""One flat row per experiment, the same for CSV and Parquet: stable names, stable order, a unit for each column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from llenergymeasure.atomic import write_atomically
from llenergymeasure.domain.base import as_utc, columns_in
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.warnings import codes_of
from llenergymeasure.security import user_path

if TYPE_CHECKING:
    import pyarrow

Scalar = str | int | float | bool | datetime | None
ColumnType = Literal["string", "integer", "number", "timestamp", "boolean"]
_TYPES: Final[dict[type, ColumnType]] = {int: "integer", float: "number", datetime: "timestamp"}
_UNIONS: Final = (Union, UnionType)

OUTPUT_DIR: Final = "output_dir"
"""The setting that says where, not what."""

_INT64: Final = 2**63

ROWS_AT_ONCE: Final = 256
"""Rows of a table that are in memory at a time while it is written."""

BATCH_SETTING: Final = {"pytorch": "batch_size", "vllm": "max_num_seqs", "tensorrt": "max_batch_size"}
"""The setting of each backend that bounds how many requests run side by side."""


@dataclass(frozen=True, slots=True)
class Heading:
    """What a column is; any of its values may be null."""

    name: str
    type: ColumnType
    unit: str
    description: str


@dataclass(frozen=True, slots=True)
class FlatColumn(Heading):
    """One column of the flat row, see `domain.base.Column`."""

    position: int
    value: Callable[[ExperimentResult], Scalar]


def flat_row(result: ExperimentResult) -> dict[str, Scalar]:
    """The columns of one result, in the order of `FLAT_COLUMNS`."""
    values = {column.name: column.value(result) for column in FLAT_COLUMNS}
    return {name: as_utc(value) if isinstance(value, datetime) else value for name, value in values.items()}


class ColumnSurvey:
    """The columns of a table of several results, found out as these pass by, none of which is kept.

    The flat row comes first; then, by its dotted path, every setting in which the results differ and that has no column
    of its own: the swept ones, and what engines chose differently.
    """

    def __init__(self) -> None:
        self._results = 0
        self._settings: dict[str, _Seen] = {}

    def add(self, result: ExperimentResult) -> None:
        """Take one result into account."""
        self._results += 1
        for path, value in settings_in_effect(result).items():
            self._settings.setdefault(path, _Seen(json.dumps(value))).add(value)

    def columns(self) -> tuple[Heading, ...]:
        """The columns of all results so far."""
        taken = {column.name for column in FLAT_COLUMNS}
        varying = sorted(path for path, seen in self._settings.items() if seen.varies_among(self._results))
        text = "Setting `{}`, as it was in effect"
        added = [Heading(path, self._settings[path].type, "", text.format(path)) for path in varying]
        return (*FLAT_COLUMNS, *(heading for heading in added if heading.name not in taken))


Rows = Iterator[dict[str, Scalar]]


def tabulate(
    results: Iterable[ExperimentResult], columns: Sequence[Heading] | None = None
) -> tuple[Sequence[Heading], Rows]:
    """The columns of a table of several results, and its rows, each made when it is asked for.

    Args:
        columns: As a `ColumnSurvey` of these results has them; `None`: the results are gone through twice, and kept
            where they come from an iterator.
    """
    if columns is None:
        results = list(results) if isinstance(results, Iterator) else results
        survey = ColumnSurvey()
        for result in results:
            survey.add(result)
        columns = survey.columns()
    return columns, _rows(results, columns[len(FLAT_COLUMNS) :])


def to_csv(results: Iterable[ExperimentResult], path: str | Path, columns: Sequence[Heading] | None = None) -> Path:
    """Write one row per result as CSV (RFC 4180, so lines end in CR LF; UTF-8; a header line); null is an empty cell.

    Args:
        columns: See `tabulate`.

    Raises:
        PersistenceError: The file cannot be written; names the path.
    """
    columns, rows = tabulate(results, columns)
    path = user_path(path)

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow([column.name for column in columns])
        writer.writerows([_csv_cell(value) for value in row.values()] for row in rows)
        text.detach()  # flushes, and leaves the file open

    write_atomically(path, write)
    return path


def write_parquet(columns: Sequence[Heading], rows: Rows, file: BinaryIO) -> None:
    """Write a table as Parquet, some rows at a time."""
    import pyarrow
    import pyarrow.parquet

    schema = _schema(columns)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


def _schema(columns: Iterable[Heading]) -> pyarrow.Schema:
    import pyarrow

    types = {
        "string": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
    }
    return pyarrow.schema(
        [pyarrow.field(c.name, types[c.type], metadata={"unit": c.unit, "description": c.description}) for c in columns]
    )


def flat_columns_markdown() -> str:
    """The columns as a Markdown table, for the documentation."""
    rows = [f"| `{c.name}` | {c.type} | {c.unit or '–'} | {c.description} |" for c in FLAT_COLUMNS]
    return "\n".join(["| column | type | unit | meaning |", "|---|---|---|---|", *rows]) + "\n"


def batch_size(result: ExperimentResult) -> int | None:
    """The batch setting of the result's backend, `None` where the engine's own default was not recorded."""
    section = result.effective_config.get(result.backend)
    size = section.get(BATCH_SETTING.get(result.backend)) if isinstance(section, dict) else None
    return size if isinstance(size, int) else None


def _csv_cell(value: Scalar) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    return repr(value) if isinstance(value, float) else value


def _at(path: str) -> Callable[[ExperimentResult], Any]:
    """Reads a dotted attribute path; null as soon as a part is null."""

    def value(result: ExperimentResult) -> Any:
        found: Any = result
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return found

    return value


def _config_text(key: str) -> Callable[[ExperimentResult], str | None]:
    def value(result: ExperimentResult) -> str | None:
        found = result.effective_config.get(key)
        return None if found is None else str(found)

    return value


def model_of(result: ExperimentResult) -> str | None:
    """The model as it was configured; `None` where that is not recorded."""
    return result.model_name or _config_text("model")(result)


def _gpus(result: ExperimentResult) -> str | None:
    names = result.environment_snapshot.gpu_names if result.environment_snapshot else []
    return "; ".join(names) or None


def _num_devices(result: ExperimentResult) -> int | None:
    per_device_j = result.energy_per_device_j
    return None if per_device_j is None else sum(joules is not None for joules in per_device_j)


def _config_json(result: ExperimentResult) -> str:
    return json.dumps(result.effective_config, sort_keys=True, ensure_ascii=False)


def settings_in_effect(result: ExperimentResult) -> dict[str, Any]:
    """The settings that were in effect, by dotted path, without where results went."""
    return {path: value for path, value in by_path(json.loads(_config_json(result))) if path != OUTPUT_DIR}


def _rows(results: Iterable[ExperimentResult], varying: Sequence[Heading]) -> Rows:
    for result in results:
        settings = settings_in_effect(result) if varying else {}
        yield flat_row(result) | {column.name: _cell(settings.get(column.name), column.type) for column in varying}


def by_path(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration by its dotted path; a list is one value, and so is an empty mapping."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from by_path(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", inner


@dataclass(slots=True)
class _Seen:
    """What is known of the values that a setting has in several results.

    Args:
        first: The first of them, as JSON.
        times: In how many results it is there.
        kinds: The types of those that are not null.
    """

    first: str
    times: int = 0
    varies: bool = False
    kinds: set[type] = field(default_factory=set)
    fits_64_bits: bool = True

    def add(self, value: Any) -> None:
        self.times += 1
        self.varies = self.varies or json.dumps(value) != self.first
        if value is not None:
            self.kinds.add(type(value))
            self.fits_64_bits = self.fits_64_bits and (type(value) is not int or abs(value) < _INT64)

    def varies_among(self, results: int) -> bool:
        """Whether it has several values in so many results, one that is not there counting as null."""
        return self.varies or (self.times < results and self.first != "null")

    @property
    def type(self) -> ColumnType:
        """The type of column that holds all of its values; text where they have none in common."""
        if self.kinds == {bool}:
            return "boolean"
        if not self.kinds <= {int, float} or not self.fits_64_bits:
            return "string"
        return "integer" if self.kinds == {int} else "number"


def _cell(value: Any, type_: ColumnType) -> Scalar:
    if type_ == "string" and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return float(value) if type_ == "number" and value is not None else value


def _declared(model: type[BaseModel], path: str = "") -> Iterator[FlatColumn]:
    """The columns that the fields of `model` declare, and those of the records in it."""
    for name, declared in model.model_fields.items():
        here = f"{path}{name}"
        options = (
            get_args(declared.annotation) if get_origin(declared.annotation) in _UNIONS else (declared.annotation,)
        )
        types = [option for option in options if isinstance(option, type) and get_origin(option) is None]
        type_: ColumnType = next((_TYPES[option] for option in types if option in _TYPES), "string")
        for column in columns_in(declared.metadata):
            text = column.text or str(declared.description).rstrip(".")
            inner_type: ColumnType = "number" if column.at else type_
            value = _at(f"{here}.{column.at}" if column.at else here)
            yield FlatColumn(column.name or name, inner_type, column.unit, text, column.position, value)
        for inner in types:
            if issubclass(inner, BaseModel):
                yield from _declared(inner, f"{here}.")


_COMPUTED: Final = (
    FlatColumn("model", "string", "", "Model as configured", 4, model_of),
    FlatColumn("precision", "string", "", "Number format", 7, _config_text("precision")),
    FlatColumn("batch_size", "integer", "requests", "Batch setting of the backend", 8, batch_size),
    FlatColumn("duration_sec", "number", "s", "Length of the whole experiment", 15, _at("duration_sec")),
    FlatColumn("gpu", "string", "", "GPUs in use", 56, _gpus),
    FlatColumn("num_devices", "integer", "", "Metered devices", 57, _num_devices),
    FlatColumn(
        "num_processes",
        "integer",
        "",
        "Processes that took part",
        58,
        lambda r: r.aggregation.num_processes if r.aggregation else 1,
    ),
    FlatColumn(
        "warnings",
        "string",
        "",
        "Codes of the warnings, separated by `; `",
        61,
        lambda r: "; ".join(codes_of(r.measurement_warnings)),
    ),
    FlatColumn("effective_config", "string", "", "The resolved configuration as JSON", 62, _config_json),
)
"""What is not a figure of its own, but put together for the row."""

FLAT_COLUMNS: Final = tuple(sorted((*_declared(ExperimentResult), *_COMPUTED), key=attrgetter("position")))
"""Every column in order; see `flat_columns_markdown`."""
