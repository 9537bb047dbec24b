from __future__ import annotations

from pathlib import Path

import pytest

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.preflight import run_preflight
from llenergymeasure.core.progress import Event, StepStarted
from llenergymeasure.exceptions import BackendError, PreFlightError
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.local import bench_here, engine_or_reason

REASON = "the vllm backend needs vllm>=0.30 (none installed)"


def test_a_missing_engine_is_listed_with_everything_else_that_is_wrong() -> None:
    config = ExperimentConfig(model="m", backend="vllm", dataset="nowhere.jsonl")
    with pytest.raises(PreFlightError) as raised:
        run_preflight(config, BackendError(REASON), UserConfig(), None)
    assert any(REASON in failure for failure in raised.value.failures)
    assert any("nowhere.jsonl" in failure for failure in raised.value.failures)


def test_an_engine_that_cannot_be_had_becomes_the_reason_why(tmp_path: Path) -> None:
    reason = engine_or_reason("tensorrt", SystemClock(), tmp_path)
    assert isinstance(reason, BackendError)
    assert "tensorrt" in str(reason)


def test_without_an_engine_there_is_no_bench_but_a_preflight_that_fails(tmp_path: Path) -> None:
    events: list[Event] = []
    config = ExperimentConfig(model="m", backend="tensorrt", dataset="nowhere.jsonl")
    with pytest.raises(PreFlightError, match="tensorrt") as raised:
        bench_here(Job(config, UserConfig(), tmp_path), events.append)
    assert any("nowhere.jsonl" in failure for failure in raised.value.failures)
    assert events == [StepStarted("preflight")]
