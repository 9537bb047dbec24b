"""What goes into a job directory comes out of it unchanged, and nothing in it can do harm."""

from __future__ import annotations

import ast
import json
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import llenergymeasure
from config_strategies import configs
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.baseline import Baseline, CachedBaseline
from llenergymeasure.core.progress import PromptsDone, StepFinished, StepStarted, Waiting
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.datasets.types import Shard
from llenergymeasure.domain.experiment import compute_measurement_config_hash
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import ExperimentError, PersistenceError
from llenergymeasure.runners.child import AtBarrier, Done, Failed, Go, Message, Open, Ready, from_line, to_line
from llenergymeasure.runners.job import Job, MeasuredRun, MeasuredShard, read_job, run_from_json, run_to_json, write_job
from result_samples import make_result, make_rich_result

IDLE = CachedBaseline(
    frozenset({"GPU-0", "GPU-1"}),
    "nvml",
    Baseline(
        power_w=120.1 / 3,
        method="fresh",
        half_width_w=0.1,
        taken_at=datetime(2026, 2, 18, 14, 30, 5, 123456, tzinfo=timezone.utc),
        age_s=0.0,
        duration_s=30.0,
        scope="gpu",
        per_device_w={"GPU-0": 20.0, "GPU-1": 20.033},
        warnings=(MeasurementWarning(WarningCode.BASELINE_NOT_IDLE, "GPU-0 was not idle"),),
    ),
)


def sent(job: Job) -> Job:
    write_job(job)
    return read_job(job.work_dir)


def is_set_in(model: BaseModel) -> dict[str, Any]:
    """Names of the fields somebody has set, all the way down."""
    values = {name: getattr(model, name) for name in model.model_fields_set}
    return {name: is_set_in(value) if isinstance(value, BaseModel) else None for name, value in values.items()}


@settings(deadline=None, max_examples=200)
@given(config=configs())
def test_any_config_arrives_as_it_was_given(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    arrived = sent(Job(config, UserConfig(), tmp_path_factory.getbasetemp())).config
    assert arrived == config
    assert is_set_in(arrived) == is_set_in(config)
    assert compute_measurement_config_hash(arrived) == compute_measurement_config_hash(config)


MACHINES = [
    {},
    {"output": {"webhook_url": "https://example.org/secret", "results_dir": "./r\u00e9sultats \u2028"}},
    {"runners": {"vllm": "docker:llenergymeasure/vllm:2.0.0-cuda12"}},
    {"measurement": {"carbon_intensity_gco2_kwh": None, "datacenter_pue": 1.1, "currency": "€"}},
    {"cluster": {"hardware": ["NVIDIA H100"]}, "advanced": {"power_gain_uncertainty_pct": 1e-300}},
]


@pytest.mark.parametrize("settings_of_machine", MACHINES)
def test_the_machines_settings_arrive_as_they_were_given(tmp_path: Path, settings_of_machine: dict[str, Any]) -> None:
    machine = UserConfig.model_validate(settings_of_machine)
    arrived = sent(Job(ExperimentConfig(model="a"), machine, tmp_path)).machine
    assert arrived == machine
    assert is_set_in(arrived) == is_set_in(machine)


def test_everything_else_arrives_too_and_the_directory_may_have_another_name(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    job = Job(
        ExperimentConfig(model="a"),
        UserConfig(),
        tmp_path / "here",
        baselines=(IDLE,),
        timeout_s=0.1 + 0.2,
        experiment_id="a_b",
        shard=Shard(1, 3),
    )
    assert sent(job) == job
    (tmp_path / "here").rename(tmp_path / "there")
    assert read_job(tmp_path / "there").work_dir == tmp_path / "there"
    assert str(tmp_path) not in (tmp_path / "there" / "job.json").read_text()


def test_a_job_is_for_its_owner_alone(tmp_path: Path) -> None:
    write_job(Job(ExperimentConfig(model="a"), UserConfig(), tmp_path))
    assert stat.S_IMODE((tmp_path / "job.json").stat().st_mode) == 0o600


def test_a_job_of_another_release_is_refused(tmp_path: Path) -> None:
    write_job(Job(ExperimentConfig(model="a"), UserConfig(), tmp_path))
    content = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps({**content, "version": "1.9", "news": True}))
    with pytest.raises(ExperimentError, match=r"written by llenergymeasure 1\.9, and this is"):
        read_job(tmp_path)


def test_a_job_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match=r"gone/job\.json"):
        write_job(Job(ExperimentConfig(model="a"), UserConfig(), tmp_path / "gone"))


@pytest.mark.parametrize("result", [make_result(), make_rich_result()])
def test_a_run_arrives_as_it_was_measured(tmp_path: Path, result: Any) -> None:
    files = Artefacts(
        tmp_path / "timeseries.parquet", None, tmp_path / "outputs.jsonl", (tmp_path / "trace_1.parquet",)
    )
    run = MeasuredRun(result, files, (IDLE,))
    assert run_from_json(MeasuredRun, run_to_json(run, tmp_path), tmp_path) == run
    elsewhere = run_from_json(MeasuredRun, run_to_json(run, tmp_path), Path("/mnt"))
    assert elsewhere.artefacts.timeseries == Path("/mnt/timeseries.parquet")


def test_a_shard_arrives_as_it_was_measured(tmp_path: Path) -> None:
    shard = MeasuredShard(Artefacts(), (IDLE,))
    assert run_from_json(MeasuredShard, run_to_json(shard, tmp_path), tmp_path) == shard


@pytest.mark.parametrize("path", ["../../.ssh/id_rsa", "/etc/passwd"])
def test_a_run_names_no_file_outside_its_directory(tmp_path: Path, path: str) -> None:
    content = json.loads(run_to_json(MeasuredRun(make_result(), Artefacts()), tmp_path))
    content["artefacts"]["outputs"] = path
    with pytest.raises(ExperimentError, match="is not below"):
        run_from_json(MeasuredRun, json.dumps(content), tmp_path)


@pytest.mark.parametrize("content", ["", "null", "{}", "[" * 10_000, '{"result": {}, "artefacts": {}}'])
def test_what_is_no_run_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ExperimentError, match=r"is no result: [\w. ]+: [^\n]+$"):
        run_from_json(MeasuredRun, content, tmp_path)


MESSAGES: list[Message] = [
    Ready(),
    AtBarrier(0.05),
    Done(),
    Done('{"result": 1}\n'),
    Failed("BackendError", "two\nlines \udcff"),
    Go(),
    Open(12.345678901234567),
    StepStarted("load"),
    StepStarted("warmup", 5),
    StepFinished("baseline", "61.2 W idle (30 s)"),
    Waiting("thermal_floor", 0.1),
    PromptsDone("measure", 1, 2, 3, 4.5),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_line_and_arrives_as_it_was_sent(message: Message) -> None:
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert from_line(line) == message
    assert from_line(line[:-1]) is None  # its sender died while it wrote


@given(line=st.binary() | st.sampled_from([b"[]", b"{}", b'{"is": "Path", "at": "/"}', b'{"is": "Go", "then": 1}']))
def test_what_is_no_message_is_nothing(line: bytes) -> None:
    assert from_line(line + b"\n") is None


def test_nothing_in_the_package_reads_what_could_run_code() -> None:
    sources = sorted(Path(llenergymeasure.__file__).parent.rglob("*.py"))
    imported = {
        name.partition(".")[0]
        for source in sources
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "json" in imported
    assert imported.isdisjoint({"pickle", "cloudpickle", "dill", "marshal", "shelve", "multiprocessing"})
