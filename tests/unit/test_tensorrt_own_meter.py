"""The meter that TensorRT-LLM brings: a second opinion, which never costs a run."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from llenergymeasure.core.backends.tensorrt.own_meter import MODULE, OwnMeter


@pytest.mark.parametrize("failing", ["nothing", "__init__", "__enter__", "__exit__", "total_energy"])
def test_what_it_fails_with_costs_its_figure_alone(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(what: str) -> None:
        if what == failing:
            raise RuntimeError("NVML: GPU is lost")

    class EnergyMonitor:
        def __init__(self, gpus: int) -> None:
            act("__init__")

        def __enter__(self) -> EnergyMonitor:
            act("__enter__")
            return self

        def __exit__(self, *_: object) -> None:
            act("__exit__")
            self.joules = 5.0

        @property
        def total_energy(self) -> float:
            act("total_energy")
            return self.joules

    module = ModuleType(MODULE)
    module.EnergyMonitor = EnergyMonitor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    with OwnMeter(1).counting() as own_j:
        pass
    assert own_j() == (5.0 if failing == "nothing" else None)
