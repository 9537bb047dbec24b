from __future__ import annotations

from pathlib import Path

import pytest

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.missing import MissingBackend
from llenergymeasure.core.backends.protocol import InferenceBackend
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.preflight import run_preflight
from llenergymeasure.exceptions import BackendError, PreFlightError
from llenergymeasure.runners.local import engine_or_reason

REASON = "the vllm backend needs vllm>=0.30 (none installed)"


def test_a_missing_engine_is_listed_with_everything_else_that_is_wrong() -> None:
    config = ExperimentConfig(model="m", backend="vllm", dataset="nowhere.jsonl")
    with pytest.raises(PreFlightError) as raised:
        run_preflight(config, MissingBackend("vllm", REASON), UserConfig(), None)
    assert any(REASON in failure for failure in raised.value.failures)
    assert any("nowhere.jsonl" in failure for failure in raised.value.failures)


def test_an_engine_that_cannot_be_had_becomes_a_stand_in_that_knows_why(tmp_path: Path) -> None:
    engine = engine_or_reason("tensorrt", SystemClock(), tmp_path)
    assert isinstance(engine, InferenceBackend)
    assert "tensorrt" in engine.preflight(ExperimentConfig(model="m", backend="tensorrt"))[0]
    with pytest.raises(BackendError, match="tensorrt"):
        engine.load(ExperimentConfig(model="m", backend="tensorrt"))
    engine.unload()
