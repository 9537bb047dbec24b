"""The check for real boards, rehearsed: real processes on a scripted board. A job of CI runs all of its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.nvml.scripted import ScriptedGpu, ScriptedNvml, have_compiler
from tests.nvml.virtual import Counter, Sensor
from tests.nvml.waveform import constant

from gpu_check_parts import counter, sensor
from gpu_check_parts.lines import AS_EXPECTED, NOT_AS_EXPECTED, Book
from gpu_check_parts.plan import ON_REQUEST, PARTS
from gpu_check_parts.rehearsal import RehearsalRig

pytest.importorskip("torch", reason="needs the pytorch extra")
pytest.importorskip("transformers", reason="needs the pytorch extra")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.py"


OF_MINUTES = ("graphs", "long_windows")


@pytest.mark.timeout(900)  # a dozen parts, some of which take real seconds
@pytest.mark.skipif(not have_compiler(), reason="the scripted NVML is built with gcc, which is not installed")
def test_every_part_runs_from_start_to_end_without_a_problem(tmp_path: Path) -> None:
    names = [part.name for part in (*PARTS, *ON_REQUEST) if part.name not in OF_MINUTES]
    asked = [word for name in names for word in ("--only", name)]
    command = [sys.executable, str(SCRIPT), "--rehearse", "--out", str(tmp_path), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "report.md").read_text()
    assert {"report.md", "report.json", "traces.tar.gz"} <= {file.name for file in tmp_path.iterdir()}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"]["rehearsal"]
    verdicts = {line["key"]: line["verdict"] for part in report["parts"] for line in part["lines"]}
    for key in (
        "study.completed",
        "repeats.ours",
        "clocks.limit",
        "clocks.reasons",
        "devices.out-of-memory",
        "devices.after-it",
        "devices.killed",
    ):
        assert verdicts[key] == "as expected", (key, (tmp_path / "report.md").read_text())
    assert verdicts["devices.peak"] == "could not tell"  # nothing is on a GPU here


@pytest.mark.skipif(not have_compiler(), reason="the scripted NVML is built with gcc, which is not installed")
def test_a_board_that_is_not_as_expected_is_found_out(tmp_path: Path) -> None:
    """Its counter adds up what the sensor sees, and its time stamps are those of the updates."""
    board = ScriptedGpu.of(
        "hopper",
        waveform=constant(72.0),
        instant=Sensor(window_s=0.025, update_s=0.1, phase_s=0.03, noise_w=1.0),
        counter=Counter(follows_sensor=True),
        field_timestamp="update",
    )
    with ScriptedNvml([board], tmp_path) as nvml:
        rig = RehearsalRig(tmp_path, board, nvml)
        counted, sensed = Book(tmp_path / "counter", counter.LINES), Book(tmp_path / "sensor", sensor.LINES)
        counter.phases(rig, counted)
        sensor.poll_fields(rig, sensed)
    found = json.loads((tmp_path / "counter/part.json").read_text())["findings"]
    found |= json.loads((tmp_path / "sensor/part.json").read_text())["findings"]
    assert found["counter.phases"]["verdict"] == NOT_AS_EXPECTED, found["counter.phases"]
    assert found["sensor.power-time-stamp"]["verdict"] == NOT_AS_EXPECTED, found["sensor.power-time-stamp"]
    assert found["sensor.power-period"]["verdict"] == AS_EXPECTED, found["sensor.power-period"]


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
