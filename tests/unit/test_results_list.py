"""`python -m llenergymeasure.results DIR`: past results as a table."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from llenergymeasure.domain.energy import EnergyBreakdown
from llenergymeasure.results.__main__ import main
from llenergymeasure.results.persistence import save_result
from result_samples import NOON, make_result, make_rich_result


def test_results_are_listed_oldest_first_with_their_label_and_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = save_result(make_rich_result(measurement_warnings=["a: 1", "a: 2", "b: 1"]), tmp_path / "study")
    guess = EnergyBreakdown(raw_j=1.0, method="model_estimate")
    estimated = save_result(
        make_result(start_time=NOON, config_name="gpt2 / pytorch", energy_breakdown=guess), tmp_path
    )
    assert main([str(tmp_path)]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        ["Measured", "J/token", "tok/s", "Warnings", "Configuration", "Result"],
        ["2026-02-18 12:00 UTC", "0.500 J/token (estimated)", "20.0", "0", "gpt2 / pytorch", str(estimated)],
        [
            "2026-02-18 14:30 UTC",
            "0.412 ± 0.021 J/token",
            "310",
            "2",
            "qwen2.5-0.5b / pytorch / bf16 / batch 8",
            str(measured),
        ],
    ]


def test_a_damaged_file_is_named_and_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_result(make_result(), tmp_path)
    damaged = save_result(make_result(end_time=NOON + timedelta(hours=1)), tmp_path)
    damaged.write_text("{")
    assert main([str(tmp_path)]) == 0
    spoken = capsys.readouterr()
    assert spoken.out.count("\n") == 2
    assert f"Left out: {damaged} is not valid JSON" in spoken.err


def test_a_directory_named_twice_is_listed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_result(make_result(), tmp_path)
    assert main([str(tmp_path), str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_where_there_is_nothing_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llenergymeasure.results", "nowhere"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    missing = "Left out: Cannot read nowhere: No such file or directory.\n"
    assert (said.returncode, said.stdout, said.stderr) == (1, "", f"{missing}No result.json below nowhere.\n")


def test_what_a_running_experiment_keeps_is_no_result_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_result(make_result(), tmp_path)
    (tmp_path / ".work" / "run-00001").mkdir(parents=True)
    (tmp_path / ".work" / "run-00001" / "result.json").write_text("{}")
    assert main([str(tmp_path)]) == 0
    spoken = capsys.readouterr()
    assert (spoken.out.count("\n"), spoken.err) == (2, "")


def test_a_file_stands_for_itself_and_one_place_that_cannot_be_read_does_not_hide_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_result(make_result(), tmp_path)
    assert main(["x" * 300, str(file)]) == 0
    spoken = capsys.readouterr()
    assert spoken.out.count("\n") == 2
    assert "xxx: File name too long." in spoken.err


def test_names_that_would_steer_a_terminal_are_spelled_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_result(make_result(config_name="\x1b[2J"), tmp_path)
    assert main([str(tmp_path)]) == 0
    assert "\\x1b[2J" in capsys.readouterr().out
