"""Its meter, by the names of `bench/benchmark/utils/energy_monitor.py` in 2026 (pull requests 11397 and 11855)."""

from __future__ import annotations

import os
from typing import Any

import pynvml


class EnergyMonitor:
    """Joules of the first `world_size` visible GPUs between entering and leaving."""

    def __init__(self, world_size: int) -> None:
        pynvml.nvmlInit()
        named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(int(i)) for i in (named or range(world_size))][:world_size]
        self._total_energy: float | None = None

    def __enter__(self) -> EnergyMonitor:
        self._began = self._read()
        return self

    def __exit__(self, *_: Any) -> None:
        self._total_energy = self._read() - self._began
        pynvml.nvmlShutdown()

    def _read(self) -> float:
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles) / 1000.0

    @property
    def total_energy(self) -> float | None:
        return self._total_energy
