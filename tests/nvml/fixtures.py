"""The `scripted_nvml` fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.nvml.scripted import Counter, ScriptedGpu, ScriptedNvml, have_compiler
from tests.nvml.waveform import constant


class ScriptedNvmlFactory:
    """Makes boards and plays them in this process; each call of `play` replaces what was played before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._played: list[ScriptedNvml] = []

    def gpu(
        self,
        architecture: str = "hopper",
        *,
        power_w: float | None = None,
        counter_period_s: float = 0.1,
        **more: object,
    ) -> ScriptedGpu:
        """One board, played at once; `power_w` is short for a constant waveform."""
        if power_w is not None:
            more["waveform"] = constant(power_w)
        more.setdefault("counter", Counter(period_s=counter_period_s))
        gpu = ScriptedGpu.of(architecture, **more)  # type: ignore[arg-type]
        self.play(gpu)
        return gpu

    def play(self, *gpus: ScriptedGpu) -> ScriptedNvml:
        """Play these boards from now on."""
        nvml = ScriptedNvml(gpus, self._directory)
        nvml.load()
        self._played.append(nvml)
        return nvml

    @property
    def playing(self) -> ScriptedNvml:
        """What is played now."""
        return self._played[-1]

    def close(self) -> None:
        for nvml in self._played:
            nvml.close()


@pytest.fixture
def scripted_nvml(tmp_path: Path) -> Iterator[ScriptedNvmlFactory]:
    """A scripted NVML in this process; pynvml calls go to it."""
    if not have_compiler():
        pytest.skip("the scripted NVML is built with gcc, which is not installed")
    factory = ScriptedNvmlFactory(tmp_path)
    yield factory
    factory.close()
