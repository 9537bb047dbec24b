"""What the documentation says of other tools, done by these tools on a study that was really measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from llenergymeasure.results.formats.__main__ import main
from llenergymeasure.results.persistence import load_study

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "interoperability.md").read_text()
BLOCKS = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("python -m llenergymeasure.results.formats")]
SCHEMA_OF = {"result.json": "result", "study_summary.json": "study_summary", "manifest.json": "manifest"}


@pytest.fixture
def beside(small_study: Path, tmp_path: Path) -> Path:
    """A directory in which `my-study` is the study, as the documentation has it."""
    (tmp_path / "my-study").symlink_to(small_study)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"import (\w+)", block)[0])
def test_every_block_of_the_page_runs_as_it_stands_and_prints_figures(block: str, beside: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=beside, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout)


def test_pandas_polars_and_duckdb_read_the_same_figures(small_study: Path) -> None:
    duckdb, pandas, polars = map(pytest.importorskip, ("duckdb", "pandas", "polars"))
    file = small_study / "results.parquet"
    speeds = sorted(result.avg_tokens_per_second for result in load_study(small_study).results())
    assert sorted(pandas.read_parquet(file)["tokens_per_second"]) == speeds
    assert sorted(polars.read_parquet(file)["tokens_per_second"]) == speeds
    assert sorted(row[0] for row in duckdb.sql(f"select tokens_per_second from '{file}'").fetchall()) == speeds


@pytest.mark.parametrize("name", SCHEMA_OF)
def test_real_files_are_valid_by_the_published_schema(name: str, small_study: Path) -> None:
    schema = json.loads((ROOT / "docs" / "schema" / f"{SCHEMA_OF[name]}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    files = sorted(small_study.rglob(name))
    assert files
    for file in files:
        content = json.loads(file.read_text())
        assert [error.message for error in validator.iter_errors(content)] == []
        assert not validator.is_valid({**content, "schema_version": "3.0"})


def test_the_effective_configuration_of_a_result_can_be_asked_for_again(small_study: Path) -> None:
    schema = json.loads((ROOT / "docs" / "schema" / "experiment.schema.json").read_text())
    for experiment in json.loads((small_study / "manifest.json").read_text())["study"]["experiments"]:
        jsonschema.validate(experiment, schema, jsonschema.Draft202012Validator)


def test_the_commands_of_the_page_are_those_there_are(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(beside)
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        if "mlflow" not in command:
            assert main(command.split()[3:]) == 0
    families = {family.name for family in text_string_to_metric_families(Path("llenergymeasure.prom").read_text())}
    assert {"llenergymeasure_tokens_per_second", "llenergymeasure_output_tokens"} <= families
    assert len(list(yaml.safe_load_all(Path("reports.yaml").read_text()))) == 4


def test_mlflow_has_a_run_per_result_and_none_twice(
    small_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "runs").as_uri()
    for _ in range(2):
        assert main([str(small_study), "--to", "mlflow", "--tracking-uri", uri, "--experiment", "small"]) == 0
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    results = {result.experiment_id: result for result in load_study(small_study).results()}
    assert sorted(run.data.tags["llenergymeasure.experiment_id"] for run in runs) == sorted(results)
    for run in runs:
        result = results[run.data.tags["llenergymeasure.experiment_id"]]
        assert run.data.metrics["tokens_per_second"] == result.avg_tokens_per_second
        assert run.data.params["pytorch.batch_size"] == str(result.effective_config["pytorch"]["batch_size"])
        assert "thermal_floor_disabled" in run.data.tags["llenergymeasure.warnings"]
        assert run.info.status == "FINISHED"
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["result.json"]
    assert capsys.readouterr().out.count("was there") == len(results)
