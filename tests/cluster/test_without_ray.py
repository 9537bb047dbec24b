"""Where there is no Ray, a study on a cluster says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_without_ray_a_cluster_is_refused_with_what_to_install(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("model: m\nsweep: {n: [1, 2]}\n")
    paths = [str(TESTS / "without_packages"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HIDDEN_PACKAGES": "ray"}
    command = [sys.executable, "-m", "llenergymeasure", "run", str(study), "--cluster", "auto"]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert said.returncode == 1
    assert "--cluster auto: needs Ray" in said.stderr
    assert 'pip install "llenergymeasure[ray]"' in said.stderr
