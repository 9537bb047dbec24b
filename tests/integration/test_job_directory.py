"""The one command of every runner, started as a container or a node of a cluster would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import PromptsDone, StepStarted
from llenergymeasure.runners.child import Done, Failed, from_line
from llenergymeasure.runners.job import Job, MeasuredRun, run_from_json, write_job

TINY = ExperimentConfig.model_validate(
    {
        "model": "builtin/tiny-llama",
        "dataset": {"synthetic": {"n": 3, "input_len": 12, "output_len": 4}},
        "precision": "fp32",
        "decoder": {"preset": "deterministic", "min_new_tokens": 4},
        "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0.0},
        "baseline": {"enabled": False},
        "energy": {"backend": None},
        "measurement": {"save_outputs": True},
        "pytorch": {"device": "cpu", "batch_size": 1},
    }
)


def run_job(directory: Path, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "llenergymeasure.runners.job", str(directory), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)


def test_a_directory_is_all_that_a_run_needs_and_holds_all_that_came_of_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    host, container = tmp_path / "host", tmp_path / "container"
    host.mkdir()
    write_job(Job(TINY, UserConfig(), host))
    host.rename(container)
    done = run_job(Path("container"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    container.rename(host)
    run = run_from_json(MeasuredRun, (host / "result.json").read_text(), host)
    assert (run.result.num_requests, run.result.output_tokens) == (3, 12)
    assert run.artefacts.outputs is not None
    assert len(run.artefacts.outputs.read_text().splitlines()) == 3
    messages = [from_line(line) for line in done.stdout.splitlines(keepends=True)]
    assert messages[0] == StepStarted("preflight")
    measured = [m for m in messages if isinstance(m, PromptsDone) and m.step == "measure"]
    assert [event.done for event in measured] == [1, 2, 3]
    assert messages[-1] == Done()
    assert None not in messages  # what libraries print goes to stderr


def test_the_directory_may_come_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.json").write_text(json.dumps("named by a variable"))
    command = [sys.executable, "-m", "llenergymeasure.runners.job", "--entry", "children:raise_backend_error"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("LLEM_JOB_DIR", str(tmp_path))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert isinstance(from_line(done.stdout), Failed)
    assert (tmp_path / "error.json").exists()
    monkeypatch.delenv("LLEM_JOB_DIR")
    neither = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert b"give the job's directory, or set LLEM_JOB_DIR" in neither.stderr


def test_a_run_that_fails_leaves_its_error(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps("reduce the batch"))
    done = run_job(tmp_path, "--entry", "children:raise_backend_error")
    assert done.returncode == 1
    failed = from_line((tmp_path / "error.json").read_bytes())
    assert isinstance(failed, Failed)
    assert (failed.error_type, failed.message) == ("BackendError", "reduce the batch")
    assert "raise_backend_error" in failed.traceback
    assert from_line(done.stdout) == failed
    assert b"reduce the batch" in done.stderr
    assert not (tmp_path / "result.json").exists()


def test_output_of_python_and_of_programs_does_not_get_between_the_messages(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps("the reason"))
    done = run_job(tmp_path, "--entry", "children:print_then_fail")
    assert isinstance(from_line(done.stdout), Failed)
    assert done.stderr.index(b"from Python") < done.stderr.index(b"from a program it started")


def test_a_barrier_without_a_launcher_is_an_error_not_a_wait(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("false")
    run_job(tmp_path, "--entry", "children:meet_or_die")
    failed = from_line((tmp_path / "error.json").read_bytes())
    assert isinstance(failed, Failed)
    assert "expected Open on stdin, got None" in failed.message
