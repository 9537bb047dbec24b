from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.export import (
    FLAT_COLUMNS,
    flat_columns_markdown,
    flat_row,
    tabulate,
    to_csv,
    write_parquet,
)
from result_samples import NOON, make_result, make_rich_result, results

FIRST_COLUMNS_FOR_EVER = (
    "experiment_id,measurement_config_hash,cycle,model,backend,backend_version,precision,batch_size,dataset,"
    "dataset_sha256,num_requests,measurement_methodology,start_time,end_time,duration_sec,window_sec,input_tokens,"
    "output_tokens,total_tokens,tokens_per_second,energy_per_token_j,energy_per_token_absolute_95_j,"
    "energy_per_token_comparative_95_j,total_energy_j,energy_adjusted_j,baseline_power_w,energy_method,energy_scope,"
    "energy_meter,avg_power_w,energy_per_request_j,prefill_energy_j,decode_energy_j,ttft_mean_ms,ttft_p50_ms,"
    "ttft_p95_ms,ttft_p99_ms,itl_mean_ms,itl_p50_ms,itl_p95_ms,itl_p99_ms,tpot_mean_ms,tpot_p50_ms,tpot_p95_ms,"
    "tpot_p99_ms,e2e_mean_ms,e2e_p50_ms,e2e_p95_ms,e2e_p99_ms,total_flops,flops_confidence,peak_memory_mb,co2_g,cost,"
    "currency,gpu,num_devices,num_processes,runner,node,warnings,effective_config"
)


def test_columns_keep_their_names_and_order_within_2_x() -> None:
    names = [column.name for column in FLAT_COLUMNS]
    assert ",".join(names).startswith(FIRST_COLUMNS_FOR_EVER)
    assert len(set(names)) == len(names)


@given(results)
def test_every_value_has_its_columns_type(result: ExperimentResult) -> None:
    types = {"string": str, "integer": int, "number": (int, float), "timestamp": datetime}
    row = flat_row(result)
    for column in FLAT_COLUMNS:
        assert row[column.name] is None or isinstance(row[column.name], types[column.type]), column.name


def test_a_row_holds_the_figures_of_the_result() -> None:
    row = flat_row(make_rich_result(measurement_warnings=["thermal_throttling: 2 s", "thermal_throttling: 1 s"]))
    assert row["model"] == "Qwen/Qwen2.5-0.5B"
    assert row["precision"] == "bf16"
    assert row["batch_size"] == 8
    assert row["energy_per_token_j"] == 5273.0 / 12_800
    assert row["energy_per_token_absolute_95_j"] == 263.65 / 12_800
    assert row["ttft_p95_ms"] == 142.0
    assert row["prefill_energy_j"] == 949.1
    assert row["gpu"] == "NVIDIA A100-SXM4-80GB"
    assert row["num_devices"] == 1
    assert row["warnings"] == "thermal_throttling"
    assert json.loads(str(row["effective_config"]))["pytorch"] == {"batch_size": 8}


def test_what_is_not_known_is_null() -> None:
    row = flat_row(make_result(total_energy_j=None))
    assert [row[name] for name in ("total_energy_j", "ttft_p95_ms", "model", "gpu", "co2_g")] == [None] * 5


@given(result=results)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_gives_every_figure_back_to_the_last_bit(result: ExperimentResult, tmp_path: Path) -> None:
    path = to_csv([result, result], tmp_path / "results.csv")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for column in FLAT_COLUMNS:
        value, cell = flat_row(result)[column.name], rows[1][column.name]
        if value is None:
            assert cell == ""
        elif isinstance(value, datetime):
            assert datetime.fromisoformat(cell) == value
        else:
            assert type(value)(cell) == value


def swept(**config: Any) -> ExperimentResult:
    return make_result(config_name=str(config), effective_config={"model": "m", "output_dir": str(config), **config})


def test_every_setting_in_which_results_differ_is_a_column_of_its_own_type() -> None:
    results = [
        swept(
            precision="bf16",
            decoder={"temperature": 0.5, "top_k": None},
            pytorch={"torch_compile": True, "batch_size": 1},
        ),
        swept(
            precision="fp16", decoder={"temperature": 1, "top_k": 50}, pytorch={"torch_compile": False, "batch_size": 1}
        ),
        swept(
            precision="fp16",
            decoder={"temperature": None, "top_k": 2**70},
            lora={"targets": ["q", "v"], "rank": "auto"},
        ),
    ]
    columns, made = tabulate(results)
    rows = list(made)
    added = {column.name: column.type for column in columns[len(FLAT_COLUMNS) :]}
    assert added == {
        "decoder.temperature": "number",
        "decoder.top_k": "string",
        "lora.rank": "string",
        "lora.targets": "string",
        "pytorch.batch_size": "integer",
        "pytorch.torch_compile": "boolean",
    }
    assert [row["decoder.temperature"] for row in rows] == [0.5, 1.0, None]
    assert [row["pytorch.torch_compile"] for row in rows] == [True, False, None]
    assert [row["lora.targets"] for row in rows] == [None, None, '["q", "v"]']
    assert [row["config_name"] for row in rows] == [result.config_name for result in results]


def test_results_of_one_configuration_have_the_columns_of_the_flat_row_alone() -> None:
    assert tabulate([swept(a=1), swept(a=1)])[0] == FLAT_COLUMNS
    assert tabulate([])[0] == FLAT_COLUMNS


@given(st.lists(results, max_size=4))
def test_any_results_make_a_table(found: list[ExperimentResult]) -> None:
    file = io.BytesIO()
    write_parquet(*tabulate(found), file)
    table = pq.read_table(file)
    assert table.num_rows == len(found)
    assert table.column_names[: len(FLAT_COLUMNS)] == [column.name for column in FLAT_COLUMNS]


def test_a_time_without_a_zone_is_taken_as_utc() -> None:
    assert flat_row(make_result(start_time=datetime(2026, 2, 18, 12)))["start_time"] == NOON
    assert NOON.tzinfo is timezone.utc


def test_a_csv_that_cannot_be_written_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match=r"Cannot write .*gone/results\.csv"):
        to_csv([], tmp_path / "gone" / "results.csv")


def test_the_documentation_lists_every_column_with_its_meaning() -> None:
    lines = flat_columns_markdown().splitlines()
    assert len(lines) == 2 + len(FLAT_COLUMNS)
    assert "| `total_energy_j` | number | J | Raw energy of the window |" in lines
