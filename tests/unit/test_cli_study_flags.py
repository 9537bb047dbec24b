"""`llem run` on a study before anything runs: its defaults, its flags, its preview, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.nvml.scripted import ScriptedGpu

from command_line import CommandLine
from llenergymeasure.cli.dry_run import MAX_LISTED, render_study_preview
from llenergymeasure.cli.study import with_command_line_defaults
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.host.host import Host
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.runners.job import Job
from study_fakes import Stage, result_of, study_of

if TYPE_CHECKING:
    from tests.nvml.fixtures import ScriptedNvmlFactory

GRID = """\
model: somebody/model
baseline: {enabled: false}
warmup: {thermal_floor_seconds: 0}
sweep: {precision: [fp32, bf16], pytorch.batch_size: [1, 2]}
"""


@pytest.fixture
def llem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    directory = tmp_path / "work"
    directory.mkdir()
    return CommandLine(directory, monkeypatch, capsys)


@pytest.fixture
def llama_1b(tmp_path: Path) -> str:
    """One billion weights in one file's header: 2 GB in bf16."""
    shape = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    directory = tmp_path / "llama-1b"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "head_dim": 64, **shape}))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1000, 1_000_000], "data_offsets": [0, 0]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(directory)


@pytest.mark.parametrize(
    ("given", "cycles", "order"),
    [
        ({}, 3, "interleaved"),
        ({"n_cycles": 1}, 1, "interleaved"),
        ({"cycle_order": "sequential"}, 3, "sequential"),
        ({"n_cycles": 1, "cycle_order": "sequential"}, 1, "sequential"),
    ],
)
def test_a_study_runs_three_interleaved_cycles_unless_it_says_otherwise(
    given: dict[str, object], cycles: int, order: str
) -> None:
    execution = with_command_line_defaults(ExecutionConfig.model_validate(given))
    assert (execution.n_cycles, execution.cycle_order) == (cycles, order)


def test_flags_beat_the_file(llem: CommandLine) -> None:
    study = llem.file("s.yaml", GRID + "execution: {n_cycles: 9, cycle_order: shuffled, config_gap_seconds: 60}\n")
    said = llem("run", study, "--dry-run", "--cycles", "2", "--order", "sequential", "--no-gaps")
    assert "4 configurations × 2 cycles, sequential: 8 runs" in said.out
    assert "Order          1 1 2 2 3 3 4 4" in said.out
    assert "0 s of gaps" in said.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "4"], "override 'batch_size' contradicts sweep.pytorch.batch_size"),
        (["--precision", "fp16"], "override 'precision' contradicts sweep.precision"),
        (["--order", "backwards"], "--order: execution.cycle_order: must be one of sequential, interleaved, shuffled"),
        (["--cycles", "0"], "--cycles: execution.n_cycles: must be at least 1, got 0"),
    ],
)
def test_a_flag_that_contradicts_the_study_is_refused(llem: CommandLine, flags: list[str], message: str) -> None:
    said = llem("run", llem.file("s.yaml", GRID), *flags)
    assert (said.code, said.out) == (2, "")
    assert message in said.err


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_more_runs_than_can_be_held_are_refused_before_anything_is_made(llem: CommandLine, more: list[str]) -> None:
    study = llem.file("s.yaml", "model: m\nsweep: {n: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}\n")
    said = llem("run", study, "--cycles", "100000", *more)
    assert (said.code, said.out) == (2, "")
    assert "11 experiments in 100,000 cycles are 1,100,000 runs; 1,000,000 is the most. Set it to 90,909" in said.err
    assert [path.name for path in llem.directory.iterdir()] == [study]


def test_a_sweep_that_yields_nothing_valid_is_refused_with_the_reasons(llem: CommandLine) -> None:
    said = llem("run", llem.file("s.yaml", "{model: a/b, sweep: {decoder.temperature: [.nan, .inf, 5]}}\n"))
    assert said.code == 2
    assert "none of the study's 3 points is valid" in said.err
    assert "decoder.temperature: must be a finite number, got nan (1×)" in said.err


def test_a_preview_tells_the_grid_what_is_skipped_and_why_the_order_and_the_time(llem: CommandLine) -> None:
    text = (
        "{name: nightly, model: a/b, sweep: {decoder.top_p: [0.5, .nan, 1.0]},"
        " execution: {config_gap_seconds: 60, cycle_gap_seconds: 300}}\n"
    )
    lines = llem("run", llem.file("s.yaml", text), "--dry-run").out.splitlines()
    assert lines[0].startswith("Dry run: study nightly, design ")
    assert lines[1] == "  2 configurations × 3 cycles, interleaved: 6 runs"
    assert lines[3:] == [
        "Configurations",
        "     1  b / pytorch / bf16 / decoder.top_p=0.5",
        "     2  b / pytorch / bf16 / decoder.top_p=1.0",
        "",
        "Skipped points of the grid, because not valid: 1",
        "  ✗ decoder.top_p=nan: decoder.top_p: must be a finite number, got nan",
        "",
        "Order          1 2 1 2 1 2",
        "Time           at least 19 m 30 s: 13 m 00 s of gaps, 6 m 30 s of waits",
        "               loading and generating come on top; how long they take is not known before a first run",
        "Nothing was run.",
    ]


def test_skipped_points_are_told_before_a_real_run_unless_it_is_quiet(llem: CommandLine) -> None:
    # Two engines cannot live side by side: it ends before its first run.
    grid = llem.file(
        "s.yaml", "{model: a/b, backend: [pytorch, vllm], sweep: {decoder.top_p: [0.5, 2.0], n: [1, 2]}}\n"
    )
    told = "decoder.top_p=2.0 (4 points): decoder.top_p: must be at most 1, got 2.0"
    assert told in llem("run", grid).err
    assert told not in llem("run", grid, "--quiet").err


def test_a_baseline_that_all_runs_share_counts_once() -> None:
    study = study_of("a", "b", cycles=3)
    assert "at least 6 m 30 s: 0 s of gaps, 6 m 30 s of waits" in render_study_preview(study, UserConfig())


def test_a_large_study_is_cut_short_unless_all_is_asked_for() -> None:
    study = study_of(*(f"model-{number}" for number in range(MAX_LISTED + 3)))
    assert "… and 3 more (--verbose lists all)" in render_study_preview(study, UserConfig())
    assert f"model-{MAX_LISTED + 2} / " in render_study_preview(study, UserConfig(), list_all=True)


@pytest.mark.parametrize(("total_mb", "verdict"), [(24_000, "fits in the 24.0 GB"), (2_000, "DOES NOT FIT in the 2.0")])
def test_a_preview_compares_the_memory_of_each_configuration_with_the_gpu(
    scripted_nvml: ScriptedNvmlFactory, llama_1b: str, total_mb: int, verdict: str
) -> None:
    scripted_nvml.play(ScriptedGpu.of("ada", memory_total_mb=total_mb, memory_used_mb=0))
    study = StudyConfig(experiments=[ExperimentConfig(model=llama_1b)])
    text = render_study_preview(study, UserConfig(), host=Host({}, open_nvml))
    assert "llama-1b / pytorch / bf16  (GPU memory ≈ " in text
    assert verdict in text


def test_memory_of_a_gpu_is_no_matter_on_the_cpu(llama_1b: str) -> None:
    study = StudyConfig(experiments=[ExperimentConfig(model=llama_1b, pytorch={"device": "cpu"})])
    assert "GPU memory" not in render_study_preview(study, UserConfig())


def test_resuming_without_the_file_keeps_the_execution_and_lets_flags_change_it(
    llem: CommandLine, tmp_path: Path
) -> None:
    stage = Stage(tmp_path / "begun")
    stage.directory.mkdir()
    stage.runner(study_of("a", "b", cycles=2, cycle_order="sequential")).run()
    assert "2 cycles, sequential: 4 runs" in llem("run", "--resume", str(stage.directory), "--dry-run").out
    more = llem("run", "--resume", str(stage.directory), "--dry-run", "--cycles", "5", "--order", "interleaved")
    assert "5 cycles, interleaved: 10 runs" in more.out
    none = llem("run", "--resume", str(stage.directory), "--cycles", "0")
    assert none.code == 2
    assert "--cycles: " in none.err


def test_resuming_with_the_file_takes_what_it_leaves_open_from_before(llem: CommandLine, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "begun")
    stage.directory.mkdir()
    stage.runner(study_of("a", cycles=2, cycle_order="sequential")).run()
    study = llem.file("s.yaml", "experiments: [{model: a}]\nexecution: {n_cycles: 4}\n")
    shown = llem("run", study, "--resume", str(stage.directory), "--dry-run").out
    assert "1 configuration × 4 cycles, sequential: 4 runs" in shown


@pytest.fixture
def half_done(tmp_path: Path) -> str:
    """The directory of a study of two models and two cycles whose second cycle is to be run yet."""
    stage = Stage(tmp_path / "begun")
    stage.directory.mkdir()
    stage.launcher.act = lambda job: _stops_after(stage, job, runs=2)
    with pytest.raises(KeyboardInterrupt):
        stage.runner(study_of("a", "b", cycles=2, cycle_order="interleaved")).run()
    return str(stage.directory)


def _stops_after(stage: Stage, job: Job, runs: int) -> ExperimentResult:
    if len(stage.launcher.jobs) == runs:
        stage.interrupt.request()
    return result_of(job.config)


def test_a_preview_of_a_study_that_was_begun_tells_what_is_left(llem: CommandLine, half_done: str) -> None:
    for said in (
        llem("run", "--resume", half_done, "--dry-run"),
        llem("run", llem.file("s.yaml", "experiments: [{model: a}, {model: b}]\n"), "--resume", half_done, "--dry-run"),
    ):
        assert (said.code, "model: a is not in the local cache" in said.err) == (1, True)
        assert "4 runs\n  2 of them are finished, 2 left\n" in said.out
        assert "Order          1 2\n" in said.out
        assert "0 s of gaps" in said.out
    changed = llem("run", "--resume", half_done, "--cycles", "1", "--dry-run")
    assert "0 left" in changed.out
    assert (changed.code, "nothing is left to do" in changed.out) == (0, True)


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "x"],
        ["-n", "7"],
        ["-o", "elsewhere"],
        ["--backend", "vllm"],
        ["--device", "cpu"],
        ["--dataset", "x.jsonl"],
        ["--batch-size", "2"],
        ["--precision", "fp32"],
    ],
)
def test_flags_that_cannot_change_a_study_that_was_begun_are_refused(
    llem: CommandLine, half_done: str, flags: list[str]
) -> None:
    for more in ([], ["--dry-run"]):
        said = llem("run", "--resume", half_done, *flags, *more)
        assert (said.code, said.out) == (2, "")
        assert flags[0].replace("-o", "--output") in said.err


def test_beside_the_file_flags_change_the_study_and_the_difference_is_told(llem: CommandLine, half_done: str) -> None:
    study = llem.file("s.yaml", "experiments: [{model: a}, {model: b}]\n")
    said = llem("run", study, "--resume", half_done, "-n", "7", "--dry-run")
    assert said.code == 1
    assert "n: 100 -> 7" in said.err
    assert llem("run", study, "--resume", half_done, "-o", "elsewhere").code == 2


def test_what_is_no_study_to_go_on_with_is_a_usage_error(llem: CommandLine, half_done: str) -> None:
    experiment, study = llem.file("e.yaml", "model: a\n"), llem.file("s.yaml", "experiments: [{model: a}]\n")
    (llem.directory / "empty").mkdir()
    for arguments, message in (
        (["--resume", "nowhere"], "nowhere is not a directory"),
        ([study, "--resume", "nowhere"], "nowhere is not a directory"),
        (["--resume", experiment], "e.yaml is not a directory"),
        (["--resume", "empty"], "empty holds no manifest.json"),
        ([study, "--resume", "empty"], "empty holds no manifest.json"),
        ([experiment, "--resume", half_done], "--resume: for studies only"),
        (["--model", "a", "--resume", half_done], "--model: cannot change"),
    ):
        for more in ([], ["--dry-run"]):
            said = llem("run", *arguments, *more)
            assert (said.code, said.out) == (2, "")
            assert message in said.err
    assert list((llem.directory / "empty").iterdir()) == []


def test_a_csv_of_a_finished_study_is_made_when_it_is_asked_for(llem: CommandLine, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "begun")
    stage.directory.mkdir()
    stage.runner(study_of("a")).run()
    assert llem("run", "--resume", str(stage.directory), "--export-csv").code == 0
    assert (stage.directory / "results.csv").is_file()


def test_one_study_is_kept_where_its_file_or_the_flag_says(llem: CommandLine) -> None:
    one, two = (f"{{model: builtin/tiny-llama, n: {n}, pytorch: {{device: cpu}}, output_dir: at-{n}}}" for n in (1, 2))
    text = f"experiments: [{one}, {two}]\n"
    said = llem("run", llem.file("s.yaml", text), "--dry-run")
    assert said.code == 2
    assert "a study is kept in one" in said.err
    assert llem("run", "s.yaml", "--dry-run", "--output", "three").code == 0
