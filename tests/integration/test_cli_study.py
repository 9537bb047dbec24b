"""`llem run` on a study, as a user sees it: terminal, exit code, and the files, which must all say the same."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llem_process import QUICK, TerminalRun, Workplace, llem_command, run_on_terminal
from llenergymeasure.cli.study import render_study
from llenergymeasure.results.persistence import load_study

duckdb = pytest.importorskip("duckdb")
pandas = pytest.importorskip("pandas")
pytest.importorskip("transformers")

STUDY = (
    QUICK
    + """
name: shown
experiments: [{model: /no/such/model}, {decoder: {temperature: 0.5}}]
execution: {n_cycles: 2, cycle_order: interleaved, config_gap_seconds: 0, cycle_gap_seconds: 1}
"""
)


@dataclass(frozen=True)
class Morning:
    """A study that ran, and what it left."""

    workplace: Workplace
    run: TerminalRun
    directory: Path

    def json(self, name: str) -> dict[str, Any]:
        """One of its files."""
        data: dict[str, Any] = json.loads((self.directory / name).read_text())
        return data


@pytest.fixture(scope="module")
def morning(tmp_path_factory: pytest.TempPathFactory) -> Morning:
    workplace = Workplace(tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("home"))
    workplace.write("study.yaml", STUDY)
    run = run_on_terminal(workplace, [*llem_command(), "run", "study.yaml", "--export-csv"])
    (manifest,) = workplace.cwd.glob("results/shown_*/manifest.json")
    return Morning(workplace, run, manifest.parent)


def test_a_failed_run_is_named_with_its_log_and_makes_the_exit_code_1(morning: Morning) -> None:
    assert morning.run.code == 1
    assert "no such directory: /no/such/model" in morning.run.text
    logs = [line.split("log: ")[1] for line in morning.run.text.splitlines() if "  log: " in line]
    assert len(logs) == 2
    assert all("/no/such/model" in (morning.workplace.cwd / log / "child.log").read_text() for log in logs)
    assert "2 completed, 2 failed, of 4 planned" in morning.run.text


def test_the_terminal_shows_a_bar_with_elapsed_time_and_what_is_left(morning: Morning) -> None:
    gap = "Gap between cycles: 1 s (execution.cycle_gap_seconds), Enter skips it"
    for shown in ("Runs 0/4 |", "Runs 3/4 |", "✗ [1/4] ", "✓ [2/4] ", gap):
        assert shown in morning.run.text


def test_what_is_on_screen_is_what_is_in_the_summary(morning: Morning) -> None:
    place = morning.directory.relative_to(morning.workplace.cwd)
    assert render_study(load_study(morning.directory), place, 100) in morning.run.text


def test_pandas_and_duckdb_find_the_summarys_figures_in_the_table(morning: Morning) -> None:
    summary = morning.json("study_summary.json")
    (row,) = summary["statistics"]
    frame = pandas.read_parquet(morning.directory / "results.parquet")
    energy = frame.groupby("measurement_config_hash")["energy_per_token_j"].agg(["mean", "std", "count"])
    assert energy.loc[row["measurement_config_hash"]].tolist() == pytest.approx(
        [row["energy_per_token_j"][key] for key in ("mean", "std", "count")]
    )
    ((total, rate, runs),) = duckdb.sql(
        f"SELECT sum(total_energy_j), avg(tokens_per_second), count(*) FROM '{morning.directory}/results.parquet'"
    ).fetchall()
    assert total == pytest.approx(summary["summary"]["total_energy_j"])
    assert rate == pytest.approx(row["tokens_per_second"]["mean"])
    assert runs == summary["summary"]["completed"] == 2
    csv = pandas.read_csv(morning.directory / "results.csv")
    assert csv["total_energy_j"].tolist() == pytest.approx(frame["total_energy_j"].tolist())


def test_the_manifest_lists_the_results_that_are_there(morning: Morning) -> None:
    manifest = morning.json("manifest.json")
    listed = [entry["result_file"] for entry in manifest["experiments"] if entry["status"] == "completed"]
    assert listed == morning.json("study_summary.json")["result_files"]
    assert sorted(morning.directory / file for file in listed) == morning.workplace.results()
    counts = [manifest[key] for key in ("status", "completed", "failed", "pending")]
    assert counts == ["completed", 2, 2, 0]


SCRIPT = """\
import llenergymeasure as llem

study = llem.StudyConfig(
    experiments=[llem.ExperimentConfig(
        model="builtin/tiny-llama", n=2, max_output_tokens=4, dataset="prompts.jsonl", pytorch={"device": "cpu"},
        warmup={"n_warmup": 1, "thermal_floor_seconds": 0}, baseline={"enabled": False},
    )],
    name="scripted",
    execution={"config_gap_seconds": 0},
)
print("main module runs")
result = llem.run_study(study, output_dir="kept")
again = llem.run_study(study, output_dir="kept", resume=f"kept/{result.study_id}")
print(result.summary.completed, result == again)
"""


def test_a_script_without_a_guard_runs_a_study_and_resumes_it(morning: Morning) -> None:
    script = morning.workplace.write("script.py", SCRIPT)
    run = run_on_terminal(morning.workplace, [sys.executable, str(script)])
    assert run.text.splitlines() == ["main module runs", "1 True"]
    assert run.code == 0
