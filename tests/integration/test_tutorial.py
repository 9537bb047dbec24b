"""The tutorial is true: its study is planned as it prints, and its figure is drawn from a study's own summary."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
SUMMARY = ROOT / "tests" / "data" / "release_2_0" / "study_summary.json"


def block(language: str, first_line: str) -> str:
    """The text of the page's block that begins with a line."""
    found = re.search(rf"^```{language}\n({re.escape(first_line)}.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, first_line
    return found[1]


def test_the_dry_run_prints_what_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(block("yaml", "# study.yaml"))
    command = [sys.executable, "-m", "llenergymeasure", "run", "study.yaml", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == block("text", "Dry run: study batch-size")


@pytest.mark.parametrize(("estimated", "called"), [(True, " (estimated)"), (False, "")])
def test_the_figure_is_drawn_and_calls_an_estimate_one(tmp_path: Path, estimated: bool, called: str) -> None:
    study = json.loads(SUMMARY.read_text())
    study["statistics"] = [row | {"estimated": estimated} for row in study["statistics"]]
    (tmp_path / "study_summary.json").write_text(json.dumps(study))
    script = block("python", "# figure.py").replace("figure.png", "figure.svg")
    (tmp_path / "figure.py").write_text("import matplotlib\nmatplotlib.rcParams['svg.fonttype'] = 'none'\n" + script)
    subprocess.run([sys.executable, "figure.py", "."], cwd=tmp_path, check=True)
    drawn = (tmp_path / "figure.svg").read_text()
    assert f">J per output token{called}<" in drawn
    assert f">{study['statistics'][0]['model_name']}: mean and 95 % interval of 2 cycles<" in drawn
