"""What was measured reaches its caller, whatever the disk does before, meanwhile and afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llem_process import PROMPTS
from llenergymeasure._api import _run, run_experiment
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.core.progress import Event, StepStarted
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import ResultNotSavedError, load_result

pytest.importorskip("transformers", reason="needs the pytorch extra")


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    return ExperimentConfig.model_validate(
        {
            "model": "builtin/tiny-llama",
            "n": 2,
            "max_output_tokens": 4,
            "dataset": str(tmp_path / "prompts.jsonl"),
            "pytorch": {"device": "cpu"},
            "energy": {"backend": None},
            "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0},
            "output_dir": str(tmp_path / "out"),
        }
    )


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


def test_a_work_directory_that_cannot_be_removed_costs_nothing(config: ExperimentConfig, temporary: Path) -> None:
    told: list[ExperimentResult] = []

    def observer(event: Event) -> None:
        if event == StepStarted("finish"):
            shutil.rmtree(next(temporary.glob("llem-*")))  # as somebody who tidies up would

    study = _run(StudyConfig(experiments=[config]), told.append, observer=observer)
    assert [load_result(path).output_tokens for path in study.result_files] == [told[0].output_tokens] == [8]


@pytest.mark.usefixtures("temporary")
def test_a_result_that_can_be_saved_nowhere_comes_with_the_error(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = Path(config.output_dir or ""), []

    def observer(event: Event) -> None:
        if event == StepStarted("finish"):
            shutil.rmtree(out)
            out.write_text("no directory any more")

    def on_result(result: ExperimentResult) -> None:
        told.append(result)
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setattr("tempfile._candidate_tempdir_list", list)

    with pytest.raises(ResultNotSavedError, match="Nor elsewhere") as caught:
        _run(StudyConfig(experiments=[config]), on_result, observer=observer)
    assert [caught.value.result] == told
    copied = caught.value.__reduce__()[0](*caught.value.__reduce__()[1])
    assert (copied.result, str(copied)) == (told[0], str(caught.value))


def test_no_place_for_temporary_files_is_told_before_anything_runs(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", list)
    with pytest.raises(PersistenceError, match=r"No usable temporary directory.*set TMPDIR"):
        run_experiment(config)
