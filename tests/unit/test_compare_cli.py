"""`python -m llenergymeasure.results.compare`: what it prints, refuses and decides, on saved results."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compare_results import TIGHT, Results
from llenergymeasure.domain.comparison import Comparison
from llenergymeasure.domain.energy import BudgetComponent, EnergyBreakdown, combine_budget
from llenergymeasure.domain.environment import DatasetInfo, EnvironmentSnapshot, MeasurementBoundary
from llenergymeasure.results.compare.__main__ import main

RELEASE = Path(__file__).parents[1] / "data" / "release_2_0"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


Compared = Callable[..., Comparison]


@pytest.fixture
def compared(capsys: pytest.CaptureFixture[str]) -> Compared:
    """Compares, and reads what `--json` prints."""

    def run(*arguments: str, code: int = 0) -> Comparison:
        assert main([*arguments, "--json"]) == code
        return Comparison.model_validate_json(capsys.readouterr().out)

    return run


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said where there is no comparison."""
    assert main(arguments) == 2
    spoken = capsys.readouterr()
    assert spoken.out == ""
    return spoken.err


def unwrapped(text: str) -> str:
    """Whatever the width of the paths in it makes of its lines."""
    return " ".join(text.split())


def test_two_equal_studies_are_not_told_apart(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([results.save("a"), results.save("b", spread=(1.0, 1.011, 0.992))]) == 0
    printed = capsys.readouterr().out
    assert "m / pytorch / batch 8  0.400     0.400      +0.1 %  −2.1 … +2.3 %  0.91  3, 3  not told apart" in printed
    assert "Every run of the candidate came after those of the baseline (55 m 00 s between them)" in unwrapped(printed)


def test_a_change_is_found_with_its_size(results: Results, compared: Compared) -> None:
    (pair,) = compared(results.save("a"), results.save("b", energy=0.44, speed=270.0)).pairs()
    assert (pair.energy.outcome, pair.speed.outcome) == ("higher", "lower")
    assert pair.energy.change_pct == pytest.approx(10.0)
    assert pair.speed.change_pct == pytest.approx(-10.0)
    assert pair.energy.ci95_low_pct is not None
    assert pair.energy.ci95_high_pct is not None
    assert 7.0 < pair.energy.ci95_low_pct < 10.0 < pair.energy.ci95_high_pct < 13.0


@pytest.mark.parametrize(
    ("energy", "speed", "flags", "code"),
    [
        (0.40, 300.0, ["--fail-if-worse", "5"], 0),
        (0.44, 300.0, ["--fail-if-worse", "5"], 1),
        (0.44, 300.0, ["--fail-if-worse", "15"], 0),
        (0.36, 300.0, ["--fail-if-worse", "0"], 0),
        (0.40, 270.0, ["--fail-if-worse", "5"], 0),
        (0.40, 270.0, ["--fail-if-worse", "5", "--fail-if-slower", "5"], 1),
        (0.40, 270.0, ["--fail-if-slower", "15"], 0),
        (0.40, 330.0, ["--fail-if-slower", "0"], 0),
    ],
)
def test_the_gate_looks_at_what_got_worse_by_more_than_its_limit(
    energy: float, speed: float, flags: list[str], code: int, results: Results
) -> None:
    assert main([results.save("a"), results.save("b", energy=energy, speed=speed), *flags]) == code


def test_the_gate_names_what_is_worse_and_what_it_would_have_found(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results.save("a", batches=(1, 8))
    results.save("b", batches=(1,))
    after = results.save("b", batches=(8,), energy=0.44)
    assert main([before, after, "--fail-if-worse", "2"]) == 1
    printed = capsys.readouterr().out
    assert "Gate: FAILED.\n  batch 8: 10.0 % more joules per output token (limit 2 %, p = " in printed
    assert "J/token: limit 2 %; an increase of " in printed


def test_the_gates_error_is_that_of_all_configurations_together(results: Results, compared: Compared) -> None:
    one = [results.save("a"), results.save("b", energy=0.412)]
    many = [results.save("c", batches=range(1, 21)), results.save("d", batches=range(1, 21), energy=0.412)]
    alone = next(compared(*one, "--fail-if-worse", "0", code=1).pairs()).energy.gate
    together = next(compared(*many, "--fail-if-worse", "0").pairs()).energy.gate
    assert alone is not None
    assert together is not None
    assert together.p_value == pytest.approx(alone.p_value, rel=1e-6)
    assert together.p_adjusted == pytest.approx(20 * (alone.p_value or 0.0), rel=1e-6)


def test_single_runs_have_the_stated_uncertainty_and_no_test(results: Results, compared: Compared) -> None:
    """1 % and 1 %, without the gain that both share: 1.4 %."""
    stated = combine_budget(
        [
            BudgetComponent(name="gain", kind="gain", half_width_j=256.0),
            BudgetComponent(name="steps", kind="counter_resolution", half_width_j=51.2),
        ],
        12_800,
    )
    sides = [results.save(name, spread=[1.0], uncertainty=stated) for name in "ab"]
    (pair,) = compared(*sides, "--fail-if-worse", "5", code=2).pairs()
    assert pair.energy.ci95_high_pct == pytest.approx(1.414, abs=0.001)
    assert (pair.energy.interval, pair.energy.outcome, pair.energy.p_value) == ("measurement", "not_tested", None)
    assert pair.energy.reason == "one run each tells nothing of the spread; run each side with --cycles 3 or more"
    assert (pair.speed.change_pct, pair.speed.interval) == (pytest.approx(0.0), None)


def test_on_other_boards_the_gains_are_in_the_interval(results: Results, compared: Compared) -> None:
    """5.15 % and 5.15 % of gain: 7.28 %, which three cycles that agree to 1 % do not make smaller."""
    boundary = MeasurementBoundary(devices=["GPU-b"], scope="gpu")
    (other,) = compared(results.save("a"), results.save("b", measurement_boundary=boundary)).pairs()
    assert other.energy.systematic_pct == pytest.approx(7.28, abs=0.01)
    assert other.energy.ci95_high_pct is not None
    assert other.energy.ci95_high_pct > 7.0
    assert any("gains of their sensors do not cancel. The interval holds them." in note for note in other.notes)
    assert other.speed.systematic_pct == 0.0


def test_boards_that_are_not_recorded_may_be_others(results: Results, compared: Compared) -> None:
    (pair,) = compared(results.save("a"), results.save("b", environment_snapshot=None)).pairs()
    assert pair.energy.systematic_pct == pytest.approx(7.28, abs=0.01)
    assert "devices: NVIDIA A100-SXM4-80GB against not recorded" in map(str, pair.differences)
    assert pair.notes[0].startswith("Which boards were measured is not recorded")


def test_on_the_same_board_the_gain_cancels(results: Results, compared: Compared) -> None:
    boundary = MeasurementBoundary(devices=["GPU-a"], scope="gpu")
    (pair,) = compared(*(results.save(name, measurement_boundary=boundary) for name in "ab")).pairs()
    assert pair.energy.systematic_pct == 0.0
    assert pair.notes == []


def snapshot(name: str = "NVIDIA A100-SXM4-80GB", limit_w: float = 400.0, **more: Any) -> EnvironmentSnapshot:
    versions = {"python_version": "3.11", "tool_version": "2.0.0", "platform": "Linux", **more}
    return EnvironmentSnapshot(gpu_names=[name], gpu_uuids=["GPU-a"], gpu_power_limit_w=[limit_w], **versions)


UNLIKE: list[tuple[str, dict[str, Any], str]] = [
    ("hardware", {"environment_snapshot": snapshot("NVIDIA H100")}, "NVIDIA A100-SXM4-80GB against NVIDIA H100"),
    ("limits", {"environment_snapshot": snapshot(limit_w=300.0)}, "power limit (W): 400.0 against 300.0"),
    (
        "dataset",
        {"dataset": DatasetInfo(name="aienergyscore", sha256="cd" * 32, prompt_count=100)},
        "SHA-256 of the prompts: abababababab… against cdcdcdcdcdcd…",
    ),
    ("tokens", {"output_tokens": 6_400, "total_tokens": 43_300}, "output tokens per request: 128 against 64.0"),
    (
        "meter",
        {"energy_breakdown": EnergyBreakdown(raw_j=1.0, meter="zeus", method="hardware_counter", scope="gpu")},
        "meter: nvml against zeus",
    ),
    ("window", {"measurement_methodology": "total"}, "part of the run that counts: steady_state against total"),
]


@pytest.mark.parametrize(("kind", "changes", "named"), UNLIKE, ids=[kind for kind, _, _ in UNLIKE])
def test_what_is_unlike_is_refused_by_name_and_compared_when_it_is_meant(
    kind: str, changes: dict[str, Any], named: str, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = (
        results.save("a", environment_snapshot=snapshot()),
        results.save("b", **{"environment_snapshot": snapshot(), **changes}),
    )
    said = refused(capsys, *sides)
    assert f"{kind}: " in said
    assert named in said
    assert said.endswith(f"If the difference is meant, say so: --accept {kind}\n")
    assert main([*sides, "--accept", kind]) == 0
    assert f"{named} (accepted)" in " ".join(capsys.readouterr().out.split())


def test_all_unlike_kinds_are_told_at_once(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    first = results.save("a", environment_snapshot=snapshot())
    second = results.save("b", environment_snapshot=snapshot("H100"), measurement_methodology="total")
    assert "--accept hardware,window" in refused(capsys, first, second)
    assert "--accept hardware,window" in refused(capsys, first, second, "--accept", "hardware")


def test_a_side_that_is_not_alike_within_itself_is_refused_too(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    first = results.save("a", environment_snapshot=snapshot())
    results.save("b", environment_snapshot=snapshot())
    second = results.save("b", environment_snapshot=snapshot("H100"))
    assert "NVIDIA A100-SXM4-80GB against NVIDIA A100-SXM4-80GB, H100" in refused(capsys, first, second)


def test_texts_that_differ_by_a_token_now_and_then_are_the_same_work(results: Results, compared: Compared) -> None:
    (pair,) = compared(results.save("a"), results.save("b", output_tokens=12_700, total_tokens=49_600)).pairs()
    assert [difference for difference in pair.differences if difference.kind == "tokens"] == []


def test_software_may_differ_and_is_named(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    packages = [f"p{number}==1" for number in range(10)]
    first = results.save("a", environment_snapshot=snapshot(pip_freeze=[*packages, "torch==2.12.0"]))
    second = results.save(
        "b", backend_version="5.24.0", environment_snapshot=snapshot(pip_freeze=[*packages, "torch==2.13.0"])
    )
    assert main([first, second]) == 0
    printed = capsys.readouterr().out
    assert "Software: version of the engine: 5.23.0 against 5.24.0" in printed
    assert "Software: packages: torch==2.12.0 against torch==2.13.0" in printed


def test_estimates_are_compared_with_a_word_about_what_they_are(results: Results, compared: Compared) -> None:
    guess = EnergyBreakdown(raw_j=1.0, meter="codecarbon", method="model_estimate", scope="machine_model")
    (pair,) = compared(*(results.save(name, energy_breakdown=guess, uncertainty=None) for name in "ab")).pairs()
    assert pair.notes[0].startswith("The joules are a model's estimate")


def test_runs_that_spread_far_are_said_to(results: Results, compared: Compared) -> None:
    (pair,) = compared(results.save("a"), results.save("b", spread=(0.9, 1.0, 1.1))).pairs()
    assert any(note.startswith("The joules spread by more than 5 % from run to run") for note in pair.notes)


def test_warnings_of_the_runs_are_told_once(results: Results, compared: Compared) -> None:
    first = results.save("a", measurement_warnings=["clocks_drifted: by 6 %", "thermal_drift_detected: 7 C"])
    results.save("b", spread=TIGHT[:1], measurement_warnings=["clocks_drifted: by 7 %", "thermal_throttling: 1 s"])
    second = results.save("b", spread=TIGHT[1:], measurement_warnings=["clocks_drifted: by 8 %"])
    (pair,) = compared(first, second).pairs()
    assert pair.notes == [
        "Warnings in every run: clocks_drifted.",
        "Warnings in some runs, baseline: thermal_drift_detected (3 of 3); candidate: thermal_throttling (1 of 3).",
    ]


def test_energy_that_was_not_measured_is_no_number_and_no_verdict(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    first = results.save("a")
    second = results.save("b", total_energy_j=None, avg_energy_per_token_j=None)
    assert main([first, second, "--fail-if-worse", "5"]) == 2
    printed = capsys.readouterr().out
    assert "0.400     not measured" in printed
    assert (
        "Gate: cannot decide.\n  m / pytorch / batch 8: energy per token was not measured in the candidate" in printed
    )


def test_what_the_candidate_lacks_stops_the_gate_unless_that_is_meant(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = results.save("a", batches=(1, 8)), results.save("b", batches=(8, 32))
    assert main([*sides]) == 0
    printed = capsys.readouterr().out
    assert "Only in the baseline: m / pytorch / batch 1\n" in printed
    assert "Only in the candidate: m / pytorch / batch 32\n" in printed
    assert main([*sides, "--fail-if-worse", "5"]) == 2
    printed = capsys.readouterr().out
    assert f" {sides[1]} lacks m / pytorch / batch 1. Measure what is missing" in unwrapped(printed)
    assert main([*sides, "--fail-if-worse", "5", "--accept", "unpaired", "--accept", "meter"]) == 0


def test_what_is_worse_is_told_before_what_is_undecided(results: Results) -> None:
    sides = results.save("a", batches=(1, 8)), results.save("b", batches=(8,), energy=0.5)
    assert main([*sides, "--fail-if-worse", "5"]) == 1


def test_several_candidates_are_each_compared_with_the_first(results: Results, compared: Compared) -> None:
    sides = [results.save("a"), results.save("b"), results.save("c", energy=0.5)]
    found = compared(*sides, "--fail-if-worse", "5", code=1)
    assert [entry.pairs[0].energy.outcome for entry in found.candidates] == ["not_told_apart", "higher"]
    assert found.gate is not None
    (reason,) = found.gate.reasons
    assert reason.startswith(f"{sides[2]}, m / pytorch / batch 8: 25.0 % more joules per output token")


def test_one_study_is_taken_apart_by_a_setting(results: Results, compared: Compared) -> None:
    """Interleaved in one study: neither side came first."""
    found = compared(results.save("a", batches=(1, 8)), "--by", "pytorch.batch_size")
    assert found.candidates[0].candidate.path.endswith("a [pytorch.batch_size: 8]")
    (pair,) = found.pairs()
    assert (pair.name, [setting.path for setting in pair.settings]) == ("batch 1 → batch 8", ["pytorch.batch_size"])
    assert found.candidates[0].notes == []


def test_a_copy_of_a_run_is_no_second_measurement(results: Results, compared: Compared) -> None:
    first, second = results.save("a"), results.save("b")
    shutil.copytree(first, results.root / "b" / "copy")
    shutil.copytree(results.root / "b" / "copy", results.root / "b" / "again")
    shutil.rmtree(first)
    assert compared(results.save("c"), second).candidates[0].candidate.runs == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "A comparison needs two directories, or one and --by SETTING."),
        (["a", "a"], "a and a hold the same run. Compare directories that have none in common."),
        (["a", "nowhere"], "Cannot read nowhere: No such file or directory."),
        (["a", "empty"], "empty holds no result.json. Give a run's or a study's directory, or one above them."),
        (["a", "b", "--by", "precision"], "--by takes one directory apart; give one."),
        (["a", "--by", "precision"], "--by precision: a cannot be split by this setting: all have the same value."),
        (["a", "b", "--ignore", "precison"], "--ignore precison: no such setting. There are backend, precision"),
        (["a", "b", "--fail-if-worse", "-1"], "--fail-if-worse takes per cent from 0 on, not -1."),
        (["a", "b", "--fail-if-slower", "100"], "--fail-if-slower takes per cent from 0 to below 100, not 100."),
        (["a", "damaged"], "result.json is not valid JSON (line 1, column 2: "),
        (["a", "x" * 300], "xxx: File name too long."),
        (["a", "b", "--html", "no/such/place.html"], "no/such/place.html"),
    ],
)
def test_what_cannot_be_done_is_one_clear_sentence(
    arguments: list[str],
    said: str,
    results: Results,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(results.root)
    for name in ("a", "b"):
        results.save(name)
    (results.root / "empty").mkdir()
    (results.root / "damaged" / "run").mkdir(parents=True)
    (results.root / "damaged" / "run" / "result.json").write_text("{")
    spoken = refused(capsys, *arguments)
    assert said in spoken
    assert "Traceback" not in spoken


def test_an_unknown_kind_is_told_with_all_there_are(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["a", "b", "--accept", "hardwear"])
    assert stopped.value.code == 2
    assert "'hardwear' is none of hardware, limits, dataset, tokens, meter, window, unpaired" in capsys.readouterr().err


def test_a_result_of_release_2_0_is_compared(tmp_path: Path, compared: Compared) -> None:
    for name, energy in (("a", 0.5), ("b", 0.6)):
        written = json.loads((RELEASE / "result.json").read_text(encoding="utf-8"))
        written |= {"experiment_id": name, "avg_energy_per_token_j": energy}
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(written))
    (pair,) = compared(str(tmp_path / "a"), str(tmp_path / "b")).pairs()
    assert pair.energy.change_pct == pytest.approx(20.0)


def test_a_study_is_compared_while_it_runs_by_what_is_finished(results: Results, compared: Compared) -> None:
    first, second = results.save("a"), results.save("b")
    unfinished = Path(second, ".work", "run-00004", "result.json")
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("{}")
    assert compared(first, second).candidates[0].candidate.runs == 3


def test_a_directory_whose_name_is_no_text_is_compared(results: Results, compared: Compared) -> None:
    first, second = Path(results.save("a")), results.save("b")
    odd = first.rename(os.fsdecode(os.fsencode(first) + b"\xff"))
    page = results.root / "page.html"
    assert compared(str(odd), second, "--html", str(page)).baseline.path.endswith("a\ufffd")
    assert "a\ufffd" in page.read_text(encoding="utf-8")


def test_a_reader_who_has_left_does_not_change_the_verdict(results: Results) -> None:
    sides = [results.save("a"), results.save("b", energy=0.5)]
    command = [sys.executable, "-m", "llenergymeasure.results.compare", *sides, "--fail-if-worse", "5"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        said = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, check=False)
    assert (said.returncode, said.stderr) == (1, "")


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_change_the_verdict(results: Results, streams: str) -> None:
    sides = [results.save("a"), results.save("b")]
    command = [sys.executable, "-m", "llenergymeasure.results.compare", *sides, "--fail-if-worse", "5"]
    said = subprocess.run(["sh", "-c", f"exec {shlex.join(command)} {streams}"], capture_output=True, check=False)
    assert said.returncode == 0


def test_a_page_takes_the_place_of_no_device(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    sides, pipe = [results.save("a"), results.save("b")], results.root / "pipe"
    os.mkfifo(pipe)
    assert main([*sides, "--html", str(pipe)]) == 2
    assert f"Cannot write {pipe}: it is a device or a pipe. Name a file." in capsys.readouterr().err
    assert pipe.is_fifo()


def test_a_file_may_stand_for_its_run_and_nobody_reads_the_answer(results: Results) -> None:
    files = [next(Path(results.save(name, spread=[1.0])).rglob("result.json")) for name in ("a", "b")]
    command = [sys.executable, "-m", "llenergymeasure.results.compare", *map(str, files)]
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (said.returncode, said.stderr) == (2, "Cannot write to stdout: No space left on device.\n")
