"""The meter that TensorRT-LLM brings (1.3 and later), beside this package's: a second opinion, for what it is worth.

It belongs to its benchmark tool and reads the counters of NVML once before and once after, of the first GPUs that
`CUDA_VISIBLE_DEVICES` names. Its server tells the same at an address, which the offline engine does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

MODULE: Final = "tensorrt_llm.bench.benchmark.utils.energy_monitor"

_log = logging.getLogger(__name__)

Reading = Callable[[], float | None]
"""Joules, once the `with` block is over; `None`: not measured."""


class OwnMeter:
    """Looks for it once, which imports much.

    Args:
        gpus: How many it is to read.
    """

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._kind = _kind()

    @contextmanager
    def counting(self) -> Iterator[Reading]:
        """While this is open, it counts; what it fails with costs its figure and never the run."""
        monitor = None if self._kind is None else _tried(lambda: self._kind(self._gpus).__enter__())
        try:
            yield lambda: None if monitor is None else _tried(lambda: monitor.total_energy)
        finally:
            if monitor is not None:
                _tried(lambda: monitor.__exit__(None, None, None))


def _kind() -> Any:
    """Its class; `None` where the version has none, one of another make, or one that cannot be imported."""
    try:
        kind = getattr(import_module(MODULE), "EnergyMonitor", None)
    except Exception as error:  # noqa: BLE001 (most versions have none)
        _log.info("TensorRT-LLM has no meter of its own: %s", error)
        return None
    return kind if hasattr(kind, "__enter__") and hasattr(kind, "total_energy") else None


def _tried(call: Callable[[], Any]) -> Any:
    """What `call` gives; `None` where it fails, of which the log tells."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 (somebody else's code, and a second opinion only)
        _log.warning("TensorRT-LLM's own meter has no figure: %s: %s", type(error).__name__, error)
        return None
