"""What the command line says to input that cannot be meant: the thing at fault, the fix, exit code 2, no traceback.

Nothing here reaches an engine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from command_line import CommandLine, Spoken
from llenergymeasure.cli.request import SHORTEST_RUN

EXPERIMENT = "model: builtin/tiny-llama\npytorch: {device: cpu}\n"


@pytest.fixture
def llem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capfd)


def assert_refused(spoken: Spoken, *said: str) -> None:
    assert spoken.code == 2
    assert spoken.out == ""
    assert "Traceback" not in spoken.err
    assert "Internal error" not in spoken.err
    for text in said:
        assert text in spoken.err


def test_nothing_to_run_shows_the_shortest_command_that_works(llem: CommandLine) -> None:
    assert_refused(llem("run"), "Nothing to run: give a config file or --model.", SHORTEST_RUN)


def test_no_command_shows_the_help(llem: CommandLine) -> None:
    spoken = llem()
    assert spoken.code == 2
    assert "Commands:" in spoken.out + spoken.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-n", "abc"], ["'-n'", "must be a whole number, got 'abc'"]),
        (["-n", "2.5"], ["'-n'", "must be a whole number, got '2.5'"]),
        (["-n", "0"], ["-n: n: must be at least 1, got 0"]),
        (["-n", "-3"], ["-n: n: must be at least 1, got -3"]),
        (["--batch-size", "x"], ["'--batch-size'", "must be a whole number, got 'x'"]),
        (["--batch-size", "0"], ["--batch-size: pytorch.batch_size: must be at least 1, got 0"]),
        (["--precision", "int8"], ["--precision: precision: must be one of fp32, fp16, bf16, got 'int8'"]),
        (["--device", "gpu"], ["--device: pytorch.device: must be one of", "Did you mean 'cuda'?"]),
        (["--precision", "float16"], ["--precision: precision: must be one of", "Did you mean 'fp16'?"]),
        (["--backend", "vlm"], ["--backend: backend: must be one of", "got 'vlm'", "Did you mean 'vllm'?"]),
        (["--device", "gpu"], ["--device: pytorch.device: must be one of auto, cuda, cpu, got 'gpu'"]),
        (["--backend", "vllm", "--device", "cpu"], ["--device: pytorch: config section provided but backend='vllm'"]),
        (["--model", ""], ["--model: model: must not be empty"]),
        (["--quiet", "--verbose"], ["--quiet and --verbose contradict each other. Give one of them."]),
        (["--dry-run", "--json", "--export-csv"], ["--json, --export-csv: for results, and --dry-run has none."]),
        (["--cycles", "3"], ["--cycles: for studies only (a file with sweep: or experiments:)", "Leave it out."]),
        (["--order", "shuffled", "--no-gaps"], ["--order, --no-gaps: for studies only"]),
        (["--bogus"], ["No such option", "--bogus"]),
    ],
)
def test_a_flag_that_cannot_be_meant_is_named_with_its_value(
    llem: CommandLine, arguments: Sequence[str], said: Sequence[str]
) -> None:
    assert_refused(llem("run", "--model", "builtin/tiny-llama", *arguments), *said)


@pytest.mark.parametrize("model", ["gpt2", "org/model", "Qwen/Qwen2.5-0.5B", "org/model.v1"])
def test_a_model_where_a_file_is_meant_is_told_its_flag(llem: CommandLine, model: str) -> None:
    assert_refused(llem("run", model), f"{model}: no such file.", f"llem run --model {model}")


def test_a_directory_where_a_file_is_meant_is_told_its_flag(llem: CommandLine) -> None:
    llem.file("model/config.json", "{}")
    llem.file("study/manifest.json", "{}")
    assert_refused(llem("run", "model"), "model: the directory of a model.", "llem run --model model")
    assert_refused(llem("run", "study"), "study: the directory of a study.", "llem run --resume study")


@pytest.mark.parametrize("file", ["nowhere.yaml", "nowhere.yml", "nowhere.json"])
def test_a_file_that_is_not_there_is_no_model(llem: CommandLine, file: str) -> None:
    spoken = llem("run", file)
    assert_refused(spoken, f"{file}: no such file")
    assert "--model" not in spoken.err


def test_all_wrong_flags_are_told_at_once(llem: CommandLine) -> None:
    spoken = llem("run", "-m", "gpt2", "-n", "0", "--precision", "int8", "--device", "gpu", "--batch-size", "0")
    assert_refused(spoken, "4 problems; nothing was run.")


def test_a_flag_beats_the_file_and_only_what_is_wrong_is_blamed(llem: CommandLine) -> None:
    config = llem.file("q.yaml", EXPERIMENT + "n: many\nprecision: fp8\n")
    spoken = llem("run", config, "-n", "0")
    assert_refused(
        spoken, "-n: n: must be at least 1, got 0", "q.yaml, line 4: precision: must be one of", "2 problems"
    )
    assert "many" not in spoken.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_input_prompts: 5\n", ["unknown field 'num_input_prompts'. Did you mean 'n'?"]),
        ("modle: gpt2\n", ["q.yaml, line 3: unknown field 'modle'. Did you mean 'model'?"]),
        ("decoder: {temprature: 1}\n", ["line 3: unknown field 'decoder.temprature'. Did you mean 'decoder.temp"]),
        ("dataset: {synthetic: {n: 2, len: 3}}\n", ["line 3: unknown field 'dataset.synthetic.len'"]),
        ("n: many\n", ["line 3: n: must be a whole number, got 'many' (text)"]),
        ("decoder:\n  temperature: hot\n", ["line 4: decoder.temperature: must be a number, got 'hot' (text)"]),
        ("warmup: {thermal_floor_seconds: 5}\n", ["line 3: warmup.thermal_floor_seconds", "0", "30"]),
        ("vllm: {max_num_seqs: 4}\n", ["vllm: config section provided but backend='pytorch'", "Remove the vllm:"]),
        ("n: [1,\n", ["q.yaml, line 4, column 1: invalid YAML"]),
        ("n: 1\nn: 2\n", ["q.yaml, line 4, column 1: duplicate key 'n'. Keep one of them."]),
        ("sweep: {precision: []}\n", ["sweep", "precision"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_line_at_fault(llem: CommandLine, text: str, said: Sequence[str]) -> None:
    assert_refused(llem("run", llem.file("q.yaml", EXPERIMENT + text)), "q.yaml", *said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "q.yaml: the file is empty."),
        ("- a\n- b\n", "q.yaml: expected a mapping"),
        ("model: \xe9".encode("latin-1"), "q.yaml: not UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_configuration_is_refused(llem: CommandLine, content: str | bytes, said: str) -> None:
    (llem.directory / "q.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(llem("run", "q.yaml"), said)


def test_a_missing_file_is_named(llem: CommandLine) -> None:
    assert_refused(llem("run", "nope.yaml"), "nope.yaml: no such file.")


@pytest.mark.parametrize("path", ["two\nlines.yaml", "x" * 300, "x" * 300 + ".yaml"])
@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_a_path_that_cannot_be_one_is_refused_and_not_printed_as_it_stands(
    llem: CommandLine, flags: Sequence[str], path: str
) -> None:
    spoken = llem("run", *flags, path)
    assert_refused(spoken, repr(path), "control character" if "\n" in path else "longer than 255 bytes")


def test_a_model_given_in_place_of_a_file_gets_its_flag(llem: CommandLine) -> None:
    assert_refused(llem("run", "openai-community/gpt2"), "llem run --model openai-community/gpt2")


def test_a_directory_in_place_of_a_file_is_told(llem: CommandLine) -> None:
    assert_refused(llem("run", "."), ".: cannot be read: Is a directory.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("output: {results: x}\n", "line 1: unknown field 'output.results'. Did you mean 'output.results_dir'?"),
        ("ui:\n  verbosity: loud\n", "line 2: ui.verbosity: must be one of quiet, standard, verbose, got 'loud'"),
        ("output: [\n", "line 2, column 1: invalid YAML"),
        (
            "runners: {pytorch: 'podman:x'}\n",
            "runners.pytorch: must be local or docker:<image>, got 'podman:x'",
        ),
    ],
)
def test_a_broken_user_config_is_named_with_the_line_at_fault(llem: CommandLine, text: str, said: str) -> None:
    llem.user_config(text)
    assert_refused(llem("run", "-m", "builtin/tiny-llama"), "xdg/llenergymeasure/config.yaml, ", said)


def test_a_variable_that_does_not_parse_is_named(llem: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLEM_CARBON_INTENSITY", "green")
    said = "environment variable LLEM_CARBON_INTENSITY: "
    assert_refused(llem("run", "-m", "builtin/tiny-llama"), said, "must be a number, got 'green'")


def test_verbose_adds_the_traceback_to_the_message(llem: CommandLine) -> None:
    spoken = llem("run", "nope.yaml", "--verbose")
    assert spoken.code == 2
    assert spoken.err.startswith("Traceback")
    assert spoken.err.endswith("nope.yaml: no such file.\n")


def test_a_contradiction_has_no_traceback_even_when_verbose(llem: CommandLine) -> None:
    assert_refused(llem("run", "-m", "gpt2", "-q", "-v"))


def test_refused_input_leaves_nothing_on_disk(llem: CommandLine) -> None:
    config = llem.file("q.yaml", EXPERIMENT + "n: 0\n")
    llem("run", config, "--output", "results")
    assert [path.name for path in llem.directory.iterdir()] == ["q.yaml"]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["config", "--help"]])
def test_questions_about_the_command_are_answered_on_stdout(llem: CommandLine, arguments: Sequence[str]) -> None:
    spoken = llem(*arguments)
    assert (spoken.code, spoken.err) == (0, "")


def test_help_names_every_documented_flag(llem: CommandLine) -> None:
    text = llem("run", "--help").out
    flags = (
        "-m, --model", "-b, --backend", "--device", "-d, --dataset", "-n", "--batch-size", "--precision",
        "-o, --output", "--dry-run", "-q, --quiet", "-v, --verbose", "--export-csv", "--json",
        "--cycles", "--order", "--no-gaps", "--resume",
    )  # fmt: skip
    assert [flag for flag in flags if flag not in text] == []
    assert "\x1b" not in text


def test_the_version_flag_prints_the_version_alone(llem: CommandLine) -> None:
    assert llem("--version").out == "llem 2.0.0\n"


@pytest.mark.parametrize("flag", ["-o", "--output", "--resume"])
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_place_is_refused(llem: CommandLine, flag: str, text: str) -> None:
    assert_refused(llem("run", "-m", "builtin/tiny-llama", flag, text), "must not be empty")
    assert_refused(llem("run", text), "CONFIG", "must not be empty")


def test_a_tilde_is_the_home_directory_wherever_no_shell_expands_it(
    llem: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = llem.directory / "home"
    llem.file("home/e.yaml", "model: builtin/tiny-llama\nn: 3\npytorch: {device: cpu}\n")
    monkeypatch.setenv("HOME", str(home))
    spoken = llem("run", "~/e.yaml", "-o", "~/results", "--dry-run")
    assert spoken.code == 0
    assert f"Results      {home}/results" in spoken.out
    assert f"{home}/nowhere" in llem("run", "--resume", "~/nowhere").err


def test_a_config_comes_through_a_pipe(llem: CommandLine) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"model: builtin/tiny-llama\nn: 3\npytorch: {device: cpu}\n")
    os.close(writing)
    spoken = llem("run", f"/dev/fd/{reading}", "--dry-run")
    os.close(reading)
    assert (spoken.code, "Prompts      3 of aienergyscore" in spoken.out) == (0, True)


def test_a_fault_in_a_pipe_is_told_with_its_line(llem: CommandLine) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"model: builtin/tiny-llama\nn: 0\n")
    os.close(writing)
    assert_refused(llem("run", f"/dev/fd/{reading}"), f"/dev/fd/{reading}, line 2: n: must be at least 1, got 0")
    os.close(reading)
