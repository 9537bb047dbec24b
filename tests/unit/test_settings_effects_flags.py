"""What each flag of the command line changes, told by a dry run.

Flags that shape the output of a run are in tests/integration/test_settings_effects_run.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from effects_bench import ExperimentBench
from llenergymeasure.cli.app import run_app
from llenergymeasure.constants import VERSION
from study_fakes import Stage, study_of


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return str(ExperimentBench(tmp_path).prompts)


@pytest.fixture
def study_file(tmp_path: Path, prompts: str) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"{{model: builtin/tiny-llama, pytorch: {{device: cpu}}, dataset: {prompts}, n: 4,"
        " baseline: {enabled: false}, warmup: {enabled: false},"
        " sweep: {precision: [fp32, bf16, fp16]}}\n"
    )
    return str(path)


class DryRun:
    """Runs `llem run … --dry-run` and returns what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        run_app(["run", *arguments, "--dry-run"])  # its code says whether this machine could run it
        text = self._capsys.readouterr().out
        assert "Nothing was run." in text
        return text


@pytest.fixture
def dry_run(capsys: pytest.CaptureFixture[str]) -> DryRun:
    return DryRun(capsys)


def title(text: str) -> str:
    return text.splitlines()[0]


def line(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(label))


@pytest.mark.parametrize("flag", ["-m", "--model"])
def test_model_names_what_is_run(dry_run: DryRun, prompts: str, flag: str) -> None:
    assert "some-model" in title(dry_run(flag, "somebody/some-model", "-d", prompts, "-n", "1"))


@pytest.mark.parametrize("flag", ["-b", "--backend"])
def test_backend_chooses_the_engine(dry_run: DryRun, prompts: str, flag: str) -> None:
    assert "/ vllm /" in title(dry_run("-m", "a/b", flag, "vllm", "-d", prompts, "-n", "1"))


def test_device_says_where(dry_run: DryRun, prompts: str) -> None:
    assert "the CPU" in line(dry_run("-m", "a/b", "--device", "cpu", "-d", prompts, "-n", "1"), "Device")


@pytest.mark.parametrize("flag", ["-d", "--dataset"])
def test_dataset_and_n_choose_the_prompts(dry_run: DryRun, prompts: str, flag: str) -> None:
    assert f"3 of {prompts}" in line(dry_run("-m", "a/b", flag, prompts, "-n", "3"), "Prompts")


@pytest.mark.parametrize("backend", ["pytorch", "vllm", "tensorrt"])
def test_batch_size_is_the_batch_setting_of_the_backend(dry_run: DryRun, prompts: str, backend: str) -> None:
    text = dry_run("-m", "a/b", "-b", backend, "--batch-size", "7", "-d", prompts, "-n", "1")
    assert title(text).endswith("batch 7")


def test_precision_is_the_number_format(dry_run: DryRun, prompts: str) -> None:
    assert "/ fp16" in title(dry_run("-m", "a/b", "--precision", "fp16", "-d", prompts, "-n", "1"))


@pytest.mark.parametrize("flag", ["-o", "--output"])
def test_output_is_where_results_go(dry_run: DryRun, prompts: str, tmp_path: Path, flag: str) -> None:
    text = dry_run("-m", "a/b", flag, str(tmp_path / "mine"), "-d", prompts, "-n", "1")
    assert line(text, "Results").split(maxsplit=1) == ["Results", str(tmp_path / "mine")]


def test_flags_beat_the_file(dry_run: DryRun, prompts: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(f"{{model: a/in-file, dataset: {prompts}, n: 1, precision: fp32, pytorch: {{batch_size: 2}}}}\n")
    assert title(dry_run(str(file))) == "Dry run: in-file / pytorch / fp32 / batch 2"
    flags = ("-m", "a/flagged", "--precision", "bf16", "--batch-size", "4")
    assert title(dry_run(str(file), *flags)) == "Dry run: flagged / pytorch / bf16 / batch 4"


def test_dry_run_runs_nothing_and_writes_nothing(
    dry_run: DryRun, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    monkeypatch.chdir(place)
    dry_run("-m", "a/b", "-d", prompts, "-n", "1", "-o", "results")
    assert list(place.iterdir()) == []


def test_verbose_lists_all_of_a_large_study(dry_run: DryRun, study_file: str, tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text(Path(study_file).read_text().replace("sweep: {", f"sweep: {{random_seed: {list(range(30))}, "))
    assert "--verbose lists all" in dry_run(str(large))
    assert "--verbose lists all" not in dry_run(str(large), "--verbose")


def test_cycles_repeat_a_study(dry_run: DryRun, study_file: str) -> None:
    assert "3 configurations × 5 cycles" in dry_run(study_file, "--cycles", "5")
    assert "3 configurations × 3 cycles" in dry_run(study_file)


@pytest.mark.parametrize(
    ("order", "runs"), [("sequential", "1 1 2 2 3 3"), ("interleaved", "1 2 3 1 2 3"), ("shuffled", None)]
)
def test_order_arranges_the_cycles(dry_run: DryRun, study_file: str, order: str, runs: str | None) -> None:
    told = line(dry_run(study_file, "--cycles", "2", "--order", order), "Order").removeprefix("Order").strip()
    if runs is not None:
        assert told == runs
    else:
        halves = told.split()[:3], told.split()[3:]
        assert [sorted(half) for half in halves] == [["1", "2", "3"]] * 2


def test_no_gaps_leaves_the_gaps_out(dry_run: DryRun, study_file: str) -> None:
    assert "2 m 00 s of gaps" in dry_run(study_file, "--cycles", "1")
    assert "0 s of gaps" in dry_run(study_file, "--cycles", "1", "--no-gaps")


def test_cluster_beats_the_address_of_the_settings(
    dry_run: DryRun, study_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "settings" / "llenergymeasure" / "config.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text("cluster: {address: 'no address at all'}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    assert "Cluster" not in dry_run(study_file, "--cluster", "none")


@pytest.mark.parametrize("flags", [["--cycles", "2"], ["--order", "shuffled"], ["--no-gaps"], ["--cluster", "auto"]])
def test_a_flag_of_studies_on_one_experiment_is_a_usage_error(prompts: str, flags: list[str]) -> None:
    assert run_app(["run", "-m", "a/b", "-d", prompts, "-n", "1", *flags]) == 2


def test_resume_of_a_directory_without_a_study_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "--resume", str(tmp_path)]) != 0
    assert str(tmp_path) in capsys.readouterr().err


def test_quiet_leaves_the_progress_out(prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    def progress(*flags: str) -> str:
        run_app(["run", "-m", "/no/model", "-b", "tensorrt", "-d", prompts, "-n", "1", *flags])
        return capsys.readouterr().err

    assert "Experiment:" in progress()
    assert "Experiment:" not in progress("--quiet")
    assert "tensorrt" in progress("--quiet")  # what went wrong is told all the same


def test_resume_of_a_finished_study_shows_it_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Stage(tmp_path).runner(study_of("somebody/model", cycles=2)).run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("result.json")}
    assert len(before) == 2
    assert run_app(["run", "--resume", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "nothing to do" in told.err
    assert "2 completed" in told.out
    assert run_app(["run", "--resume", str(tmp_path), "--json", "--quiet"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["summary"]["completed"] == 2
    assert told.err == f"Study          {tmp_path}\nReport         {tmp_path}/report.html\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("result.json")} == before


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["--version"]) == 0
    assert capsys.readouterr().out == f"llem {VERSION}\n"


def test_config_verbose_tells_where_every_setting_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["config"]) == 0
    assert "(default)" not in capsys.readouterr().out
    assert run_app(["config", "--verbose"]) == 0
    assert "(default)" in capsys.readouterr().out
