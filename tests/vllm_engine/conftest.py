"""vLLM on this machine: with a small cache, and in the process of the test unless it says otherwise."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _small_and_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
