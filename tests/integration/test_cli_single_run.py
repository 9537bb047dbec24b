"""`llem run` on one experiment, measured for real: what goes where, on a terminal and off it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from command_line import CommandLine
from llem_process import PROMPTS, QUICK, TerminalRun, Workplace, but_for_the_disk, llem_command, run_on_terminal
from llenergymeasure.results.persistence import load_result
from mounts import tmpfs
from terminal import screen

pytest.importorskip("transformers", reason="needs the pytorch extra")

PROGRESS = r"""
Experiment: tiny-llama / pytorch / bf16 on .+
  Pre-flight   ok
  Warm-up      1/1 prompts
  Measuring    2/2 prompts  \[\d\d:\d\d, \d+ tok/s\]
""".strip()

SUMMARY = r"""
Model          builtin/tiny-llama      pytorch \S+, bf16, batch \d+
Measured       \d{4}-\d\d-\d\d \d\d:\d\d UTC    \S.*
Energy         (not measured +see the warning below|[\d.,]+( ± [\d.,e-]+)? m?J/token +[\d.,]+ m?J raw.*)
Throughput     [\d.,]+ output tok/s +16 tokens out, \d+ in
Latency        TTFT [\d.,]+ ms \(p95 [\d.,]+\) +ITL [\d.,]+ ms \(p95 [\d.,]+\)
(Phases         .+
)?(At scale       .+
)?Duration       [\d.]+ m?s window, (\d+\.\d|\d+ m \d\d) s in all
FLOPs          \d\.\de\+\d\d \(palm_formula, high confidence\)
Warnings       thermal_floor_disabled: no wait between warm-up and measurement
( {15,17}\S.*
)+Result         results/tiny-llama_pytorch_[\dT-]+/result\.json
Report         results/tiny-llama_pytorch_[\dT-]+/report\.html
""".strip()

Piped = tuple[Workplace, subprocess.CompletedProcess[str]]

PLAIN_LINE = re.compile(r"[^\x00-\x1f\x7f]*")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def workplace(tmp_path: Path, home: Path) -> Workplace:
    return Workplace(tmp_path, home)


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Piped:
    """One run without a terminal that also exports CSV."""
    workplace = Workplace(tmp_path_factory.mktemp("piped"), home)
    return workplace, workplace.run("run", "q.yaml", "--export-csv")


@pytest.fixture(scope="module")
def on_terminal(tmp_path_factory: pytest.TempPathFactory, home: Path) -> TerminalRun:
    """One run with everything on a terminal, of a user who wants no colour."""
    workplace = Workplace(tmp_path_factory.mktemp("terminal"), home)
    return run_on_terminal(workplace, [*llem_command(), "run", "q.yaml"], NO_COLOR="1", TERM="xterm-256color")


def test_the_summary_is_alone_on_stdout_and_has_its_documented_shape(piped: Piped) -> None:
    _, done = piped
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(SUMMARY, done.stdout.rstrip("\n")), done.stdout


def test_progress_without_a_terminal_is_plain_lines(piped: Piped) -> None:
    _, done = piped
    progress, _, after = but_for_the_disk(done.stderr).partition("\n\n")
    assert re.fullmatch(PROGRESS, progress), done.stderr
    assert re.fullmatch(r"CSV            results/\S+/result\.csv\n", after), done.stderr
    assert all(PLAIN_LINE.fullmatch(line) for line in (done.stdout + done.stderr).split("\n"))


def test_the_result_directory_is_complete_and_nothing_else_is_left(piped: Piped) -> None:
    workplace, _ = piped
    (path,) = workplace.results()
    beside = {"result.json", "result.csv", "timeseries.parquet", "report.html"}
    assert {file.name for file in path.parent.iterdir()} <= beside
    assert [entry.name for entry in (workplace.cwd / "results").iterdir()] == [path.parent.name]
    assert workplace.leftovers() == []


def test_the_csv_says_what_the_result_says(piped: Piped) -> None:
    workplace, _ = piped
    (path,) = workplace.results()
    result = load_result(path)
    with path.with_suffix(".csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["measurement_config_hash"] == result.measurement_config_hash
    assert int(row["output_tokens"]) == result.output_tokens == 16


def test_a_terminal_is_left_with_the_documented_lines(on_terminal: TerminalRun) -> None:
    assert on_terminal.code == 0, on_terminal.text
    shown = "\n".join(screen(on_terminal.text)).rstrip()
    progress, _, summary = but_for_the_disk(shown).partition("\n\n")
    assert re.fullmatch(PROGRESS, progress), shown
    assert re.fullmatch(SUMMARY, summary), shown


def test_a_terminal_sees_each_step_while_it_goes_on(on_terminal: TerminalRun) -> None:
    for step in ("Pre-flight   checking …", "Model        loading …", "Warm-up      0/1 |", "Measuring    0/2 |"):
        assert f"\r  {step}" in on_terminal.text


def test_no_colour_is_used(on_terminal: TerminalRun) -> None:
    assert "\x1b" not in on_terminal.text


def test_json_is_alone_on_stdout_also_when_verbose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    llem = CommandLine(tmp_path, monkeypatch, capfd)
    llem.file("q.yaml", QUICK)
    llem.file("prompts.jsonl", PROMPTS)
    spoken = llem("run", "q.yaml", "--json", "--verbose")
    (path,) = tmp_path.rglob("result.json")
    saved = json.loads(path.read_text())
    assert {**json.loads(spoken.out), "timeseries": None} == {**saved, "timeseries": None}
    assert f"Result         {path.relative_to(tmp_path)}\n" in spoken.err
    assert f"Report         {path.relative_to(tmp_path).with_name('report.html')}\n" in spoken.err
    assert re.search(r"^\S+ \S+ (DEBUG|INFO) llenergymeasure\.", spoken.err, re.MULTILINE)


def test_quiet_offline_on_a_read_only_home_leaves_the_summary_alone(workplace: Workplace, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "read-only", "size=64k,ro") as home:
        done = workplace.run("run", "q.yaml", "--quiet", HOME=str(home), HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(SUMMARY, done.stdout.rstrip("\n")), done.stdout
