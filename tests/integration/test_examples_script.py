"""The Python example runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "measure.py"


def test_the_script_prints_a_row_per_batch_size_and_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:4]]
    assert [row[0] for row in rows] == ["1", "4", "8"]
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)
    assert "Throughput" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_script_passes_a_strict_type_check(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(SCRIPT)]
    checked = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, timeout=240)
    assert checked.returncode == 0, checked.stdout
