"""Real runs on a scripted board, in turn on both sides, and what a comparison of them says and exits with.

Two equal sides may be told apart in one case of twenty, so the limits here are far from what is equal and from what
differs; how often a comparison errs is counted in `tests/unit/test_compare_rates.py`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.nvml.fixtures import ScriptedNvmlFactory

from llenergymeasure.domain.comparison import Comparison
from llenergymeasure.results.persistence import save_result
from scripted_experiments import BoardEngine, experiment, run_experiment

POWER_W = {"before": 300.0, "again": 300.0, "after": 600.0}
CYCLES = 3


@dataclass(frozen=True)
class Done:
    """What a comparison left: its exit code, and the text on either stream."""

    code: int
    out: str
    err: str


def compare(*arguments: str) -> Done:
    command = [sys.executable, "-m", "llenergymeasure.results.compare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def measured(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> dict[str, str]:
    """The directory of each side; cycle by cycle all sides were measured one after the other."""
    gpu = scripted_nvml.gpu(power_w=300.0, counter_period_s=0.1)
    config = experiment(tmp_path)
    for _ in range(CYCLES):
        for side, power_w in POWER_W.items():
            gpu.set_power_now(power_w)
            engine = BoardEngine(used_devices=(gpu.uuid,), prefill_s=0.1, step_s=0.01)
            save_result(run_experiment(config, engine, tmp_path).result, tmp_path / side)
    return {side: str(tmp_path / side) for side in POWER_W}


def test_equal_sides_pass_and_twice_the_power_fails(measured: dict[str, str], tmp_path: Path) -> None:
    equal = compare(measured["before"], measured["again"], "--fail-if-worse", "30")
    assert (equal.code, equal.err) == (0, "")
    assert "Gate: passed: no configuration was shown to be worse." in equal.out
    assert "came after" not in equal.out  # they were measured in turn

    page = tmp_path / "page.html"
    worse = compare(measured["before"], measured["after"], "--fail-if-worse", "30", "--html", str(page))
    assert worse.code == 1
    assert "Gate: FAILED." in worse.out
    assert "more joules per output token (limit 30 %" in worse.out
    assert "<svg" in page.read_text(encoding="utf-8")

    told = Comparison.model_validate_json(compare(measured["before"], measured["after"], "--json").out)
    (pair,) = told.pairs()
    assert pair.energy.outcome == "higher"
    assert pair.energy.change_pct == pytest.approx(100.0, abs=25.0)
    assert pair.energy.systematic_pct is not None
    assert pair.energy.systematic_pct < 5.0  # one board: its gain is in neither side
    assert [difference.kind for difference in pair.differences if difference.is_refused] == []

    better = compare(measured["after"], measured["before"], "--fail-if-worse", "0")
    assert better.code == 0
