"""One flat row per experiment, the same for CSV and Parquet: stable names, stable order, a unit for each column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from llenergymeasure.atomic import write_atomically
from llenergymeasure.domain.base import as_utc, columns_in
from llenergymeasure.domain.experiment import ExperimentResult

if TYPE_CHECKING:
    import pyarrow

Scalar = str | int | float | bool | datetime | None
ColumnType = Literal["string", "integer", "number", "timestamp"]
_TYPES: Final[dict[type, ColumnType]] = {int: "integer", float: "number", datetime: "timestamp"}
_UNIONS: Final = (Union, UnionType)

BATCH_SETTING: Final = {"pytorch": "batch_size", "vllm": "max_num_seqs", "tensorrt": "max_batch_size"}
"""The setting of each backend that bounds how many requests run side by side."""


@dataclass(frozen=True, slots=True)
class FlatColumn:
    """One column of the flat row, see `domain.base.Column`; any of its values may be null."""

    position: int
    name: str
    type: ColumnType
    unit: str
    description: str
    value: Callable[[ExperimentResult], Scalar]


def flat_row(result: ExperimentResult) -> dict[str, Scalar]:
    """The columns of one result, in the order of `FLAT_COLUMNS`."""
    values = {column.name: column.value(result) for column in FLAT_COLUMNS}
    return {name: as_utc(value) if isinstance(value, datetime) else value for name, value in values.items()}


def to_csv(results: Iterable[ExperimentResult], path: str | Path) -> Path:
    """Write one row per result as CSV (RFC 4180, so lines end in CR LF; UTF-8; a header line); null is an empty cell.

    Raises:
        PersistenceError: The file cannot be written; names the path.
    """

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow([column.name for column in FLAT_COLUMNS])
        for result in results:
            writer.writerow([_csv_cell(value) for value in flat_row(result).values()])
        text.detach()  # its owner closes the file

    write_atomically(Path(path), write)
    return Path(path)


def arrow_schema() -> pyarrow.Schema:
    """The columns as Arrow knows them; unit and description of each are in its field's metadata."""
    import pyarrow

    types = {
        "string": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
    }
    return pyarrow.schema(
        [
            pyarrow.field(c.name, types[c.type], metadata={"unit": c.unit, "description": c.description})
            for c in FLAT_COLUMNS
        ]
    )


def to_table(results: Iterable[ExperimentResult]) -> pyarrow.Table:
    """One row per result as an Arrow table, see `arrow_schema`."""
    import pyarrow

    return pyarrow.Table.from_pylist([flat_row(result) for result in results], schema=arrow_schema())


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
    return "; ".join(dict.fromkeys(warning.split(":", 1)[0] for warning in result.measurement_warnings))


def _config_json(result: ExperimentResult) -> str:
    return json.dumps(result.effective_config, sort_keys=True, ensure_ascii=False)


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
            yield FlatColumn(column.position, column.name or name, inner_type, column.unit, text, value)
        for inner in types:
            if issubclass(inner, BaseModel):
                yield from _declared(inner, f"{here}.")


_COMPUTED: Final = (
    FlatColumn(4, "model", "string", "", "Model as configured", _model),
    FlatColumn(7, "precision", "string", "", "Number format", _config_text("precision")),
    FlatColumn(8, "batch_size", "integer", "requests", "Batch setting of the backend", batch_size),
    FlatColumn(15, "duration_sec", "number", "s", "Length of the whole experiment", _at("duration_sec")),
    FlatColumn(56, "gpu", "string", "", "GPUs in use", _gpus),
    FlatColumn(57, "num_devices", "integer", "", "Metered devices", _num_devices),
    FlatColumn(58, "num_processes", "integer", "", "Processes that took part", _num_processes),
    FlatColumn(61, "warnings", "string", "", "Codes of the warnings, separated by `; `", _warning_codes),
    FlatColumn(62, "effective_config", "string", "", "The resolved configuration as JSON", _config_json),
)
"""What is not a figure of its own, but put together for the row."""

FLAT_COLUMNS: Final = tuple(sorted((*_declared(ExperimentResult), *_COMPUTED), key=attrgetter("position")))
"""Every column in order; see `flat_columns_markdown`."""
