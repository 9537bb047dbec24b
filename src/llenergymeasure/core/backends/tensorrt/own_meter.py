"""The meter that TensorRT-LLM brings (1.3 and later), beside this package's: a second opinion, for what it is worth.

It belongs to its benchmark tool and reads the counters of NVML once before and once after, of the first GPUs that
`CUDA_VISIBLE_DEVICES` names. Its server tells the same at an address, which the offline engine does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

MODULE: Final = "tensorrt_llm.bench.benchmark.utils.energy_monitor"

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
        """While this is open, it counts."""
        if self._kind is None:
            yield lambda: None
            return
        with self._kind(self._gpus) as monitor:
            yield lambda: monitor.total_energy


def _kind() -> Any:
    """Its class; `None` where the version has none, or one of another make."""
    try:
        kind = getattr(import_module(MODULE), "EnergyMonitor", None)
    except ImportError:
        return None
    return kind if hasattr(kind, "__enter__") and hasattr(kind, "total_energy") else None
