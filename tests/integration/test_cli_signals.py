"""Ctrl-C, SIGTERM and a closed terminal in every phase: exit code 130, one sentence, nothing half-written."""

from __future__ import annotations

import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from llem_process import TerminalRun, Workplace, llem_command, run_on_terminal
from terminal import screen

pytest.importorskip("transformers", reason="needs the pytorch extra")

LONG = """\
model: builtin/tiny-llama
n: 200
max_output_tokens: 64
dataset: prompts.jsonl
pytorch: {{device: cpu}}
warmup: {{n_warmup: {warmup}, thermal_floor_seconds: {floor}}}
baseline: {{enabled: {baseline}, duration_seconds: 5}}
"""

SENTENCE = "Interrupted. Finished results are kept; nothing half-written is left."


@dataclass(frozen=True)
class Phase:
    """A phase, what the terminal shows as it begins, the signal to send then, and the config that reaches it."""

    name: str
    shown: str
    signal: signal.Signals
    baseline: str = "false"
    warmup: int = 1
    floor: int = 0


PHASES = (
    Phase("preflight", "  Pre-flight   checking", signal.SIGINT),
    Phase("baseline", "  Baseline     ", signal.SIGTERM, baseline="true"),
    Phase("load", "  Model        loading", signal.SIGHUP),
    Phase("warmup", "  Warm-up      0/20 |", signal.SIGINT, warmup=20),
    Phase("thermal_floor", "  Thermal floor ", signal.SIGTERM, floor=30),
    Phase("measure", "  Measuring    0/200 |", signal.SIGINT),
)

ONE_AFTER_THE_OTHER = """\
import sys
from llenergymeasure.cli import signals_as_interrupt
from llenergymeasure.cli.app import run_app

for config in sys.argv[1:]:
    with signals_as_interrupt():
        code = run_app(["run", config])
    print(f"exit code {code}", flush=True)
"""
"""Runs configs in one process, so that the engine is imported once."""


def prepare(directory: Path, home: Path) -> Workplace:
    workplace = Workplace(directory, home)
    workplace.write("prompts.jsonl", '{"prompt": "Heat flows from warm to cold."}\n' * 200)
    for phase in PHASES:
        settings = {"baseline": phase.baseline, "warmup": phase.warmup, "floor": phase.floor}
        workplace.write(f"{phase.name}.yaml", LONG.format(**settings))
    return workplace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, home: Path) -> tuple[Workplace, TerminalRun]:
    """A run interrupted in each phase, in one process."""
    workplace = prepare(tmp_path_factory.mktemp("phases"), home)
    command = [sys.executable, "-c", ONE_AFTER_THE_OTHER, *(f"{phase.name}.yaml" for phase in PHASES)]
    return workplace, run_on_terminal(workplace, command, [(phase.shown, phase.signal) for phase in PHASES])


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_an_interrupted_run_ends_in_order_whatever_its_phase(
    phase: Phase, interrupted: tuple[Workplace, TerminalRun]
) -> None:
    _, run = interrupted
    assert run.signals_sent == len(PHASES), run.text
    told = re.split(r"exit code (-?\d+)\n", run.text)
    text, code = told[2 * PHASES.index(phase)], told[2 * PHASES.index(phase) + 1]
    assert code == "130", text
    assert screen(text)[-2:] == [SENTENCE, ""]
    assert "Traceback" not in text
    assert "Energy" not in text


def test_interrupted_runs_leave_nothing_half_written(interrupted: tuple[Workplace, TerminalRun]) -> None:
    workplace, _ = interrupted
    assert workplace.results() == []
    assert workplace.leftovers() == []


def test_the_process_itself_ends_with_130(tmp_path: Path, home: Path) -> None:
    workplace = prepare(tmp_path, home)
    run = run_on_terminal(
        workplace, [*llem_command(), "run", "measure.yaml"], [("  Measuring    0/200 |", signal.SIGINT)]
    )
    assert (run.code, run.signals_sent) == (130, 1), run.text
    assert screen(run.text)[-2:] == [SENTENCE, ""]
    assert workplace.leftovers() == []
