"""A rig on a scripted board: every line of every part runs, on a machine without a GPU, in a small share of the time.

The board is of Hopper's kind; its power follows the loads that this process switches. The engine runs on the CPU with
the built-in tiny model. What comes out says that the check works, and nothing about any board.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_check_parts.rig import Models, Rig, with_path
from gpu_check_parts.wheels import ROOT, put_on_path

SHARE = 0.08
"""A rehearsed duration as a share of the real one."""

BARE_W, CONTEXT_W, LOAD_W, HEAVY_W = 72.0, 122.0, 500.0, 695.0


class ScriptedLoad:
    """Makes the scripted board draw a power, and the idle power afterwards."""

    def __init__(self, board: Any, power_w: float) -> None:
        self._board, self._power_w = board, power_w

    def start(self) -> None:
        """From now on."""
        self._board.set_power_now(self._power_w)

    def stop(self) -> None:
        """Back to idling with a context."""
        self._board.set_power_now(CONTEXT_W)


class RehearsalRig(Rig):
    """A scripted board, and the CPU as the engine's device."""

    rehearsal = True
    models = Models("builtin/tiny-llama", "builtin/tiny-llama", "builtin/tiny-llama")
    device = "cpu"
    precision = "fp32"

    def __init__(self, directory: Path, board: Any, nvml: Any) -> None:
        super().__init__(directory)
        self._board, self._nvml = board, nvml

    def seconds(self, real_s: float, least_s: float = 0.2) -> float:
        """A small share."""
        return max(least_s, SHARE * real_s)

    def count(self, real: int, rehearsed: int = 1) -> int:
        """Few."""
        return min(real, rehearsed)

    def load(self) -> ScriptedLoad:
        """The scripted board's."""
        return ScriptedLoad(self._board, LOAD_W)

    def heavy_load(self) -> ScriptedLoad:
        """The same, near the limit."""
        return ScriptedLoad(self._board, HEAVY_W)

    def start_cuda(self) -> None:
        """A step of idle power, as published for an H100."""
        self._board.set_power_now(CONTEXT_W)

    def synchronize(self) -> None:
        """The CPU is never behind."""

    def step_timer(self) -> Any:
        """The host's clock."""
        from llenergymeasure.core.backends.pytorch.generation import HostStepTimer

        return HostStepTimer(self.clock)

    def torch_memory_mb(self) -> tuple[float, float]:
        """Nothing is on a GPU."""
        return 0.0, 0.0

    @contextmanager
    def memory_exhausted(self, engine: Any) -> Iterator[None]:
        """The model says so at its first step."""

        def fail(*_: object) -> None:
            import torch

            raise torch.cuda.OutOfMemoryError("rehearsed")

        hook = engine.parts.model.register_forward_pre_hook(fail)
        try:
            yield
        finally:
            hook.remove()

    def environment(self) -> dict[str, str]:
        """With the scripted driver."""
        return {**with_path(), **self._nvml.environment()}


@contextmanager
def rehearsed_rig(directory: Path) -> Iterator[RehearsalRig]:
    """A rig whose driver is the scripted one, in this process and in those it starts.

    Raises:
        RuntimeError: The scripted driver cannot be built here: it needs gcc.
    """
    put_on_path([ROOT])
    from tests.nvml.scripted import ScriptedGpu, ScriptedNvml
    from tests.nvml.virtual import Sensor
    from tests.nvml.waveform import constant

    sensor = Sensor(window_s=0.025, update_s=0.1, phase_s=0.03, noise_w=1.0)
    board = ScriptedGpu.of(
        "hopper",
        waveform=constant(BARE_W),
        instant=sensor,
        throttle_reasons=4.0,
        sm_clock_mhz=1755.0,
        utilisation_pct=0.0,
    )
    with tempfile.TemporaryDirectory() as scratch, ScriptedNvml([board], Path(scratch)) as nvml:
        yield RehearsalRig(directory, board, nvml)
