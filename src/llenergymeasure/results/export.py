"""One flat row per experiment, the same for CSV and Parquet: stable names, stable order, a unit for each column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from llenergymeasure.atomic import write_bytes_atomically
from llenergymeasure.domain.base import as_utc
from llenergymeasure.domain.experiment import ExperimentResult

if TYPE_CHECKING:
    import pyarrow

Scalar = str | int | float | bool | datetime | None
ColumnType = Literal["string", "integer", "number", "timestamp"]

BATCH_SETTING: Final = {"pytorch": "batch_size", "vllm": "max_num_seqs", "tensorrt": "max_batch_size"}
"""The setting of each backend that bounds how many requests run side by side."""


@dataclass(frozen=True, slots=True)
class FlatColumn:
    """One column of the flat row.

    Args:
        name: Column name; never changes within 2.x. New columns are appended.
        type: Type of its values; any may be null.
        unit: Unit of its values, or "".
        description: What it holds.
        value: Its value in a result.
    """

    name: str
    type: ColumnType
    unit: str
    description: str
    value: Callable[[ExperimentResult], Scalar]


def flat_row(result: ExperimentResult) -> dict[str, Scalar]:
    """The columns of one result, in the order of `FLAT_COLUMNS`."""
    return {column.name: column.value(result) for column in FLAT_COLUMNS}


def to_csv(results: Iterable[ExperimentResult], path: str | Path) -> Path:
    """Write one row per result as CSV (RFC 4180, so lines end in CR LF; UTF-8; a header line); null is an empty cell.

    Raises:
        PersistenceError: The file cannot be written; names the path.
    """
    path = Path(path)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([column.name for column in FLAT_COLUMNS])
    for result in results:
        writer.writerow([_csv_cell(value) for value in flat_row(result).values()])
    write_bytes_atomically(path, text.getvalue().encode("utf-8"))
    return path


def to_table(results: Iterable[ExperimentResult]) -> pyarrow.Table:
    """One row per result as an Arrow table; unit and description of each column are in its field's metadata."""
    import pyarrow

    types = {
        "string": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
    }
    schema = pyarrow.schema(
        [
            pyarrow.field(c.name, types[c.type], metadata={"unit": c.unit, "description": c.description})
            for c in FLAT_COLUMNS
        ]
    )
    return pyarrow.Table.from_pylist([flat_row(result) for result in results], schema=schema)


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
    getters = [attrgetter(part) for part in path.split(".")]

    def value(result: ExperimentResult) -> Any:
        found: Any = result
        for get in getters:
            if found is None:
                return None
            found = get(found)
        return found

    return value


def _config_text(key: str) -> Callable[[ExperimentResult], str | None]:
    def value(result: ExperimentResult) -> str | None:
        found = result.effective_config.get(key)
        return None if found is None else str(found)

    return value


def _utc(path: str) -> Callable[[ExperimentResult], datetime]:
    def value(result: ExperimentResult) -> datetime:
        return as_utc(_at(path)(result))

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


def _field(name: str, type_: ColumnType, unit: str, description: str, path: str | None = None) -> FlatColumn:
    return FlatColumn(name, type_, unit, description, _at(path or name))


def _latency_columns(kind: str, description: str) -> list[FlatColumn]:
    return [
        _field(
            f"{kind}_{statistic}_ms", "number", "ms", f"{description}, {name}", f"latency_stats.{kind}_ms.{statistic}"
        )
        for statistic, name in (
            ("mean", "mean"),
            ("p50", "median"),
            ("p95", "95th percentile"),
            ("p99", "99th percentile"),
        )
    ]


FLAT_COLUMNS: Final[tuple[FlatColumn, ...]] = (
    _field("experiment_id", "string", "", "Identity of the measurement"),
    _field("measurement_config_hash", "string", "", "Identity of what was measured"),
    _field("cycle", "integer", "", "Which repetition in a study, from 1"),
    FlatColumn("model", "string", "", "Model as configured", _model),
    _field("backend", "string", "", "Inference engine"),
    _field("backend_version", "string", "", "Version of the inference engine"),
    FlatColumn("precision", "string", "", "Number format", _config_text("precision")),
    FlatColumn("batch_size", "integer", "requests", "Batch setting of the backend", batch_size),
    _field("dataset", "string", "", "Data set", "dataset.name"),
    _field("dataset_sha256", "string", "", "SHA-256 of the prompts", "dataset.sha256"),
    _field("num_requests", "integer", "requests", "Requests answered in the window"),
    _field("measurement_methodology", "string", "", "What part of the run the window is"),
    FlatColumn("start_time", "timestamp", "UTC", "Beginning of the experiment", _utc("start_time")),
    FlatColumn("end_time", "timestamp", "UTC", "End of the experiment", _utc("end_time")),
    _field("duration_sec", "number", "s", "Length of the whole experiment"),
    _field("window_sec", "number", "s", "Length of the measurement window", "total_inference_time_sec"),
    _field("input_tokens", "integer", "tokens", "Input tokens"),
    _field("output_tokens", "integer", "tokens", "Output tokens"),
    _field("total_tokens", "integer", "tokens", "Input and output tokens"),
    _field("tokens_per_second", "number", "tokens/s", "Output tokens per second", "avg_tokens_per_second"),
    _field("energy_per_token_j", "number", "J/token", "Raw energy per output token", "avg_energy_per_token_j"),
    _field(
        "energy_per_token_absolute_95_j",
        "number",
        "J/token",
        "95 % half-width of energy_per_token_j, for publishing",
        "uncertainty.absolute_per_token_j",
    ),
    _field(
        "energy_per_token_comparative_95_j",
        "number",
        "J/token",
        "95 % half-width of energy_per_token_j, for runs on the same board",
        "uncertainty.comparative_per_token_j",
    ),
    _field("total_energy_j", "number", "J", "Raw energy of the window"),
    _field("energy_adjusted_j", "number", "J", "Raw energy minus idle power over the window; signed"),
    _field("baseline_power_w", "number", "W", "Idle power of the devices"),
    _field("energy_method", "string", "", "How the energy was found", "energy_breakdown.method"),
    _field("energy_scope", "string", "", "What the energy includes", "energy_breakdown.scope"),
    _field("energy_meter", "string", "", "Energy backend that measured", "energy_breakdown.meter"),
    _field("avg_power_w", "number", "W", "Raw energy over window length", "extended_metrics.avg_power_w"),
    _field("energy_per_request_j", "number", "J", "Raw energy per request", "extended_metrics.energy_per_request_j"),
    _field("prefill_energy_j", "number", "J", "Energy of prefill", "phases.prefill.energy_j"),
    _field("decode_energy_j", "number", "J", "Energy of decode", "phases.decode.energy_j"),
    *_latency_columns("ttft", "Time to first token"),
    *_latency_columns("itl", "Inter-token latency"),
    *_latency_columns("tpot", "Time per output token"),
    *_latency_columns("e2e", "End-to-end latency"),
    _field("total_flops", "number", "FLOP", "Floating-point operations (reference)"),
    _field("flops_confidence", "string", "", "How far total_flops can be trusted", "flops.confidence"),
    _field("peak_memory_mb", "number", "MB", "Peak device memory of the window"),
    _field("co2_g", "number", "g", "Emissions, from the user's own factors"),
    _field("cost", "number", "currency", "Price of the energy"),
    _field("currency", "string", "", "Currency of cost"),
    FlatColumn("gpu", "string", "", "GPUs in use", _gpus),
    FlatColumn("num_devices", "integer", "", "Metered devices", _num_devices),
    FlatColumn("num_processes", "integer", "", "Processes that took part", _num_processes),
    _field("runner", "string", "", "Where it ran"),
    _field("node", "string", "", "Cluster node that measured"),
    FlatColumn("warnings", "string", "", "Codes of the warnings, separated by `; `", _warning_codes),
    FlatColumn("effective_config", "string", "", "The resolved configuration as JSON", _config_json),
)
"""Every column in order; see `flat_columns_markdown`."""
