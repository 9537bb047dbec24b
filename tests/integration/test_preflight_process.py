"""A study asks in a process of its own whether it can run, and is told what its dry run tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import CommandLine
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.study.preflight import check_here, check_in_child

pytest.importorskip("transformers", reason="needs the pytorch extra")

SOUND = "model: builtin/tiny-llama, n: 2, pytorch: {device: cpu}"


def config(**changes: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"model": "builtin/tiny-llama", "n": 2, "pytorch": {"device": "cpu"}, **changes}
    )


def test_a_run_is_refused_in_the_words_of_its_dry_run_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    llem = CommandLine(tmp_path / "work", monkeypatch, capsys)
    study = llem.file("s.yaml", f"{{{SOUND}, dataset: none.jsonl, sweep: {{random_seed: [1, 2]}}}}\n")
    preview, run = llem("run", study, "--dry-run"), llem("run", study)
    assert (run.code, run.out, run.err) == (1, "", preview.err)
    assert not (llem.directory / "results").exists()


def test_a_process_that_is_asked_says_the_same_and_one_without_faults_nothing() -> None:
    configs = [config(), config(model="/no/model")]
    said = check_in_child(configs, UserConfig())
    assert said == check_here(configs, UserConfig())
    assert said.failing
