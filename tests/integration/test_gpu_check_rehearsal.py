"""The check for real boards, rehearsed: real processes on a scripted board. A job of CI runs all of its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.nvml.scripted import have_compiler

pytest.importorskip("torch", reason="needs the pytorch extra")
pytest.importorskip("transformers", reason="needs the pytorch extra")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.py"


@pytest.mark.skipif(not have_compiler(), reason="the scripted NVML is built with gcc, which is not installed")
def test_the_cheap_parts_run_from_start_to_end(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--rehearse",
        "--out",
        str(tmp_path),
        "--only",
        "clocks",
        "--only",
        "devices",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"report.md", "report.json", "traces.tar.gz"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"]["rehearsal"]
    verdicts = {line["key"]: line["verdict"] for part in report["parts"] for line in part["lines"]}
    for key in ("clocks.limit", "clocks.reasons", "devices.out-of-memory", "devices.after-it", "devices.killed"):
        assert verdicts[key] == "as expected", (key, (tmp_path / "report.md").read_text())
    assert verdicts["devices.peak"] == "could not tell"  # nothing is on a GPU here


def test_a_machine_without_a_board_gets_a_report_that_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--only", "clocks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"]["gpu"] == "no board answered"
    assert {line["verdict"] for line in report["parts"][0]["lines"]} == {"could not tell"}


def test_a_python_that_lacks_packages_says_so_before_anything_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-S", str(SCRIPT), "--rehearse", "--out", str(tmp_path), "--only", "clocks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
    assert "not installed: pydantic" in done.stdout
    assert "pip download --no-deps" in done.stdout


def test_the_help_names_parts_limits_and_wheels() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    for part in ("sensor", "counter", "pip download --no-deps", "pydantic=="):
        assert part in done.stdout
