"""TensorRT-LLM's own energy monitor: what it says, and that its failures cost no run."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from llenergymeasure.core.backends.tensorrt.own_meter import MODULE, OwnMeter


class Monitor:
    """Counts a joule for each GPU, and fails where it is told to."""

    fails_at = ""

    def __init__(self, gpus: int) -> None:
        self._fail("made")
        self._gpus, self._joules = gpus, 0.0

    def __enter__(self) -> Monitor:
        self._fail("opened")
        return self

    def __exit__(self, *_: object) -> None:
        self._fail("closed")
        self._joules = float(self._gpus)

    @property
    def total_energy(self) -> float:
        self._fail("asked")
        return self._joules

    def _fail(self, at: str) -> None:
        if at == self.fails_at:
            raise ZeroDivisionError(at)


@pytest.mark.parametrize(
    ("fails_at", "gpus", "joules"),
    [("", 2, 2.0), ("", 0, 0.0), *((at, 2, None) for at in ("made", "opened", "closed", "asked"))],
)
def test_it_tells_joules_or_nothing(
    fails_at: str, gpus: int, joules: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType(MODULE)
    module.EnergyMonitor = Monitor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(Monitor, "fails_at", fails_at)
    with OwnMeter(gpus).counting() as reading:
        pass
    assert reading() == joules


def test_an_error_within_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="the engine"), OwnMeter(1).counting():
        raise ValueError("the engine")
