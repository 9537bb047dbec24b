"""A small model, and both generations of TensorRT-LLM, played."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.nvml.scripted import have_compiler

pytest.importorskip("torch", reason="the stand-ins generate with it")

from pytorch_models import save_model
from tensorrt_bench import WITH_BUILDER, WITHOUT_BUILDER, TensorRTBench


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def builder(model: Path, tmp_path: Path) -> TensorRTBench:
    return _bench(WITH_BUILDER, model, tmp_path)


@pytest.fixture
def newest(model: Path, tmp_path: Path) -> TensorRTBench:
    return _bench(WITHOUT_BUILDER, model, tmp_path)


@pytest.fixture(params=[WITH_BUILDER, WITHOUT_BUILDER])
def either(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> TensorRTBench:
    return _bench(request.param, model, tmp_path)


def _bench(generation: str, model: Path, directory: Path) -> TensorRTBench:
    if not have_compiler():
        pytest.skip("the scripted NVML is built with gcc, which is not installed")
    return TensorRTBench(generation, model, directory)
