"""Our tables, read by the libraries that users read them with."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas
import pyarrow.parquet
import pytest

from llenergymeasure.results.export import FLAT_COLUMNS, flat_row, to_csv
from llenergymeasure.results.persistence import to_parquet
from result_samples import NOON, make_result, make_rich_result

RESULTS = [make_rich_result(cycle=1), make_result(total_energy_j=None, avg_energy_per_token_j=None)]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    return to_parquet(RESULTS, tmp_path / "results.parquet")


def test_pandas_reads_one_row_per_experiment(parquet: Path) -> None:
    frame = pandas.read_parquet(parquet)
    assert list(frame.columns) == [*(column.name for column in FLAT_COLUMNS), "pytorch.batch_size"]
    assert frame["total_energy_j"].isna().tolist() == [False, True]
    assert frame.loc[0, "energy_per_token_j"] == 5273.0 / 12_800
    assert frame.loc[0, "cycle"] == 1
    assert frame.loc[1, "start_time"] == pandas.Timestamp(NOON)


def test_duckdb_answers_questions(parquet: Path) -> None:
    row = duckdb.sql(
        f"select model, sum(total_energy_j), count(*) from '{parquet}' where total_energy_j is not null group by model"
    ).fetchall()
    assert row == [("Qwen/Qwen2.5-0.5B", 5273.0, 1)]


def test_every_column_carries_its_unit(parquet: Path) -> None:
    schema = pyarrow.parquet.read_schema(parquet)
    units = {field.name: field.metadata[b"unit"].decode() for field in schema}
    assert units == {**{column.name: column.unit for column in FLAT_COLUMNS}, "pytorch.batch_size": ""}
    assert units["total_energy_j"] == "J"


def test_a_study_of_nothing_still_has_columns(tmp_path: Path) -> None:
    frame = pandas.read_parquet(to_parquet([], tmp_path / "empty.parquet"))
    assert (len(frame), len(frame.columns)) == (0, len(FLAT_COLUMNS))


def test_one_result_saves_itself_as_one_row(tmp_path: Path) -> None:
    assert len(pandas.read_parquet(RESULTS[0].to_parquet(tmp_path / "one.parquet"))) == 1


def test_pandas_reads_the_csv_alike(tmp_path: Path) -> None:
    frame = pandas.read_csv(to_csv(RESULTS, tmp_path / "results.csv"))
    assert frame.loc[0, "total_energy_j"] == flat_row(RESULTS[0])["total_energy_j"]
    assert pandas.isna(frame.loc[1, "total_energy_j"])
