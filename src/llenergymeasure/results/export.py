"""One flat row per experiment, the same for CSV and Parquet: stable names, stable order, a unit for each column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from llenergymeasure.atomic import write_bytes_atomically
from llenergymeasure.domain.base import as_utc, columns_in
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.warnings import codes_of

if TYPE_CHECKING:
    import pyarrow

Scalar = str | int | float | bool | datetime | None
ColumnType = Literal["string", "integer", "number", "timestamp", "boolean"]
_TYPES: Final[dict[type, ColumnType]] = {int: "integer", float: "number", datetime: "timestamp"}
_UNIONS: Final = (Union, UnionType)

_OUTPUT_DIR: Final = "output_dir"  # where, not what
_INT64: Final = 2**63

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


def tabulate(results: Iterable[ExperimentResult]) -> tuple[tuple[Heading, ...], list[dict[str, Scalar]]]:
    """The columns of a table of several results, and its rows.

    The flat row comes first; then, by its dotted path, every setting in which the results differ and that has no column
    of its own: the swept ones, and what engines chose differently.
    """
    rows = [flat_row(result) for result in results]
    settings = [dict(_leaves(json.loads(str(row["effective_config"])))) for row in rows]
    varying = tuple(_varying(settings, {column.name for column in FLAT_COLUMNS}))
    for row, setting in zip(rows, settings, strict=True):
        row.update({column.name: _cell(setting.get(column.name), column.type) for column in varying})
    return (*FLAT_COLUMNS, *varying), rows


def to_csv(results: Iterable[ExperimentResult], path: str | Path) -> Path:
    """Write one row per result as CSV (RFC 4180, so lines end in CR LF; UTF-8; a header line); null is an empty cell.

    Raises:
        PersistenceError: The file cannot be written; names the path.
    """
    path = Path(path)
    columns, rows = tabulate(results)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([column.name for column in columns])
    for row in rows:
        writer.writerow([_csv_cell(value) for value in row.values()])
    write_bytes_atomically(path, text.getvalue().encode("utf-8"))
    return path


def to_table(results: Iterable[ExperimentResult]) -> pyarrow.Table:
    """One row per result as an Arrow table; unit and description of each column are in its field's metadata."""
    import pyarrow

    columns, rows = tabulate(results)
    types = {
        "string": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
    }
    schema = pyarrow.schema(
        [pyarrow.field(c.name, types[c.type], metadata={"unit": c.unit, "description": c.description}) for c in columns]
    )
    return pyarrow.Table.from_pylist(rows, schema=schema)


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


def _model(result: ExperimentResult) -> str | None:
    return result.model_name or _config_text("model")(result)


def _gpus(result: ExperimentResult) -> str | None:
    names = result.environment_snapshot.gpu_names if result.environment_snapshot else []
    return "; ".join(names) or None


def _num_devices(result: ExperimentResult) -> int | None:
    return len(result.energy_per_device_j) if result.energy_per_device_j is not None else None


def _num_processes(result: ExperimentResult) -> int:
    return result.aggregation.num_processes if result.aggregation else 1


def _warning_codes(result: ExperimentResult) -> str:
    return "; ".join(codes_of(result.measurement_warnings))


def _config_json(result: ExperimentResult) -> str:
    return json.dumps(result.effective_config, sort_keys=True, ensure_ascii=False)


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration by its dotted path; a list is one value, and so is an empty mapping."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", inner


def _varying(settings: Sequence[Mapping[str, Any]], taken: Collection[str]) -> Iterator[Heading]:
    """A column for each setting that has several values, one that is not there counting as null."""
    for path in sorted({path for setting in settings for path in setting} - {*taken, _OUTPUT_DIR}):
        values = {json.dumps(setting.get(path)): setting.get(path) for setting in settings}
        if len(values) > 1:
            yield Heading(path, _common_type(values.values()), "", f"Setting `{path}`, as it was in effect")


def _common_type(values: Iterable[Any]) -> ColumnType:
    """The type of column that holds all of these; text where they have none in common."""
    known = [value for value in values if value is not None]
    kinds = set(map(type, known))
    if kinds == {bool}:
        return "boolean"
    if not kinds <= {int, float} or any(abs(value) >= _INT64 for value in known if type(value) is int):
        return "string"
    return "integer" if kinds == {int} else "number"


def _cell(value: Any, type_: ColumnType) -> Scalar:
    if type_ == "string" and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return float(value) if type_ == "number" and value is not None else value


def _declared(model: type[BaseModel], path: str = "") -> Iterator[FlatColumn]:
    """The columns that the fields of `model` declare, and those of the records in it."""
    for name, field in model.model_fields.items():
        here = f"{path}{name}"
        options = get_args(field.annotation) if get_origin(field.annotation) in _UNIONS else (field.annotation,)
        types = [option for option in options if isinstance(option, type) and get_origin(option) is None]
        type_: ColumnType = next((_TYPES[option] for option in types if option in _TYPES), "string")
        for column in columns_in(field.metadata):
            text = column.text or str(field.description).rstrip(".")
            inner_type: ColumnType = "number" if column.at else type_
            value = _at(f"{here}.{column.at}" if column.at else here)
            yield FlatColumn(column.name or name, inner_type, column.unit, text, column.position, value)
        for inner in types:
            if issubclass(inner, BaseModel):
                yield from _declared(inner, f"{here}.")


_COMPUTED: Final = (
    FlatColumn("model", "string", "", "Model as configured", 4, _model),
    FlatColumn("precision", "string", "", "Number format", 7, _config_text("precision")),
    FlatColumn("batch_size", "integer", "requests", "Batch setting of the backend", 8, batch_size),
    FlatColumn("duration_sec", "number", "s", "Length of the whole experiment", 15, _at("duration_sec")),
    FlatColumn("gpu", "string", "", "GPUs in use", 56, _gpus),
    FlatColumn("num_devices", "integer", "", "Metered devices", 57, _num_devices),
    FlatColumn("num_processes", "integer", "", "Processes that took part", 58, _num_processes),
    FlatColumn("warnings", "string", "", "Codes of the warnings, separated by `; `", 61, _warning_codes),
    FlatColumn("effective_config", "string", "", "The resolved configuration as JSON", 62, _config_json),
)
"""What is not a figure of its own, but put together for the row."""

FLAT_COLUMNS: Final = tuple(sorted((*_declared(ExperimentResult), *_COMPUTED), key=attrgetter("position")))
"""Every column in order; see `flat_columns_markdown`."""
