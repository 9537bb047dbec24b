"""Small experiments on the real vLLM, on its CPU build; nothing of it is imported before it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch", reason="vLLM needs it, and so do these models")

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.clock import SystemClock
from pytorch_models import save_model

if TYPE_CHECKING:
    from llenergymeasure.core.backends.vllm.backend import VLLMBackend

NEEDS_VLLM = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")]

SECTION = {"enforce_eager": True, "max_num_seqs": 4, "max_model_len": 256}
"""Starts in seconds: nothing is compiled, and little memory is profiled."""


def save_wide_model(directory: Path, **overrides: Any) -> Path:
    """A model whose heads have a size that vLLM has CPU kernels for."""
    return save_model(directory, **{"hidden_size": 256, **overrides})


def experiment(model: Path | str, **fields: Any) -> ExperimentConfig:
    """A short greedy experiment in fp32; `vllm` fields are added to `SECTION`."""
    fields["vllm"] = {**SECTION, **fields.get("vllm", {})}
    fields["passthrough_kwargs"] = {"dtype": "float32", **fields.get("passthrough_kwargs", {})}
    settings = {"backend": "vllm", "max_input_tokens": 64, "max_output_tokens": 16, "decoder": {"temperature": 0}}
    return ExperimentConfig(model=str(model), **{**settings, **fields})


def backend() -> VLLMBackend:
    from llenergymeasure.core.backends.vllm.backend import VLLMBackend

    return VLLMBackend(SystemClock())


@contextmanager
def loaded(config: ExperimentConfig) -> Iterator[VLLMBackend]:
    """The real engine with `config` loaded."""
    engine = backend()
    engine.load(config)
    try:
        yield engine
    finally:
        engine.unload()
