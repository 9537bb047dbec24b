"""A study on a cluster says what is to be done where Ray is missing, or cannot be imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def refusal(directory: Path, first_on_the_path: Path, **environment: str) -> str:
    """What `--cluster auto` is refused with."""
    (directory / "study.yaml").write_text("model: m\nsweep: {n: [1, 2]}\n")
    paths = os.pathsep.join([str(first_on_the_path), *sys.path])
    command = [sys.executable, "-m", "llenergymeasure", "run", "study.yaml", "--cluster", "auto"]
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    said = subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True)
    assert said.returncode == 1
    return said.stderr


def test_without_ray_a_cluster_is_refused_with_what_to_install(tmp_path: Path) -> None:
    said = refusal(tmp_path, TESTS / "without_packages", HIDDEN_PACKAGES="ray")
    assert "--cluster auto: needs Ray" in said
    assert 'pip install "llenergymeasure[ray]"' in said


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_bindings_of_amd_that_lack_their_library_are_named_as_what_is_in_the_way(tmp_path: Path) -> None:
    """As `amdsmi` 7.0 fails on a machine without it, where Ray 2.60 looks for nothing but an `ImportError`."""
    (tmp_path / "amdsmi.py").write_text("raise KeyError('libamd_smi.so')\n")
    said = refusal(tmp_path, tmp_path)
    assert "Ray is installed and cannot be imported: KeyError: 'libamd_smi.so'" in said
    assert "pip uninstall amdsmi" in said
