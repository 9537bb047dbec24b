"""One experiment on two real processes on the CPU, alone and inside a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.baseline import BaselineCache
from llenergymeasure.core.progress import Event, PromptsDone, StepStarted
from llenergymeasure.exceptions import ExperimentError
from llenergymeasure.results.persistence import load_result
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.local import run_local
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.plan import RunFinished, StudyEvent
from llenergymeasure.study.runner import StudyStoppedError
from mounts import fill, tmpfs

pytest.importorskip("torch")


def experiment(**changes: Any) -> ExperimentConfig:
    fields: dict[str, Any] = {
        "model": "builtin/tiny-llama",
        "n": 5,
        "dataset": {"synthetic": {"n": 5, "input_len": 12, "output_len": 4}},
        "precision": "fp32",
        "decoder": {"preset": "deterministic", "min_new_tokens": 4},
        "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0.0},
        "baseline": {"enabled": False},
        "energy": {"backend": None},
        "measurement": {"save_outputs": True},
        "pytorch": {"device": "cpu", "num_processes": 2, "batch_size": 1},
    }
    return ExperimentConfig.model_validate({**fields, **changes})


def test_two_processes_share_the_prompts_and_make_one_result(tmp_path: Path) -> None:
    events: list[Any] = []
    run = run_local(Job(experiment(), UserConfig(), tmp_path), events.append, BaselineCache())
    result = run.result
    assert (result.num_requests, result.input_tokens, result.output_tokens) == (5, 60, 20)
    assert result.aggregation is not None
    assert (result.aggregation.num_processes, result.aggregation.complete) == (2, True)
    assert [record.inference_metrics.output_tokens for record in result.process_results] == [12, 8]
    assert result.effective_config["pytorch"]["num_processes"] == 2
    assert [event.done for event in events if isinstance(event, PromptsDone) and event.step == "measure"] == [1, 2, 3]
    assert run.artefacts.outputs is not None
    texts = [json.loads(line) for line in run.artefacts.outputs.read_text().splitlines()]
    assert [text["index"] for text in texts] == [0, 1, 2, 3, 4]


def test_shards_give_the_same_tokens_as_one_process(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    together = tmp_path / "together"
    texts = []
    for directory, processes in ((alone, 1), (together, 2)):
        directory.mkdir()
        config = experiment(pytorch={"device": "cpu", "num_processes": processes, "batch_size": 1})
        run = run_local(Job(config, UserConfig(), directory), baselines=BaselineCache())
        assert run.artefacts.outputs is not None
        texts.append(run.artefacts.outputs.read_text())
    assert texts[0] == texts[1]


def test_more_processes_than_prompts_are_refused_before_anything_starts(tmp_path: Path) -> None:
    config = experiment(n=1, pytorch={"device": "cpu", "num_processes": 2})
    with pytest.raises(ExperimentError, match="2 processes cannot share 1 prompts"):
        run_local(Job(config, UserConfig(), tmp_path), baselines=BaselineCache())


def test_records_that_the_disk_does_not_take_are_handed_over(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=256k") as disk:

        def follow(event: Event) -> None:
            if event == StepStarted("load"):  # of the first process, which has seconds of work before it
                fill(disk, leave_pages=0)

        run = run_local(Job(experiment(), UserConfig(), disk), follow, BaselineCache())
        assert not list(disk.rglob("*.done"))
    assert (run.result.num_requests, run.result.output_tokens) == (5, 20)
    assert run.result.aggregation is not None
    assert (run.result.aggregation.num_processes, run.result.aggregation.complete) == (2, True)


def test_a_run_on_several_processes_is_told_and_rescued_from_a_full_disk_as_one_on_a_single_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told: list[Any] = []
    with tmpfs(tmp_path / "disk", "size=1m") as disk:

        def follow(event: StudyEvent) -> None:
            told.append(event)
            if event == StepStarted("load"):
                fill(disk, leave_pages=0)

        with pytest.raises(StudyStoppedError, match="No space left on device"):
            execute_study(
                StudyConfig(experiments=[experiment()]), StudyPlace(disk), UserConfig(), lambda r: None, follow
            )
    (finished,) = (event for event in told if isinstance(event, RunFinished))
    assert finished.result is not None
    assert finished.result.output_tokens == 20
    (rescued,) = tmp_path.glob("*/result.json")
    assert load_result(rescued).output_tokens == 20


def test_processes_inside_a_study_leave_one_result_and_no_state(tmp_path: Path) -> None:
    study = StudyConfig(experiments=[experiment()], name="parallel", execution=ExecutionConfig())
    outcome = execute_study(study, StudyPlace(parent=tmp_path), UserConfig(), lambda result: None)
    assert (outcome.summary.completed, outcome.failed) == (1, [])
    (study_dir,) = tmp_path.iterdir()
    (result_dir,) = (path for path in study_dir.iterdir() if path.is_dir())
    assert {path.name for path in result_dir.iterdir()} >= {"result.json", "outputs.jsonl", "child.log"}
    assert load_result(result_dir).num_requests == 5
    assert not list(study_dir.rglob(".state"))
    assert pq.read_table(study_dir / "results.parquet").num_rows == 1
