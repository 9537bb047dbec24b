"""The meter that TensorRT-LLM brings (1.3 and later), beside this package's: a second opinion, for what it is worth.

It belongs to its benchmark tool and reads the counters of NVML once before and once after, of the first GPUs that
`CUDA_VISIBLE_DEVICES` names. Its server tells the same at an address, which the offline engine does not have.
Where it fails, its figure is missing, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, Final

logger = logging.getLogger(__name__)

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
        kind, opened = self._kind, ExitStack()
        monitor = None if kind is None else _attempted(lambda: opened.enter_context(kind(self._gpus)))
        counted_j: float | None = None
        try:
            yield lambda: counted_j
        finally:
            counted_j = _attempted(lambda: _closed(opened, monitor))


def _closed(opened: ExitStack, monitor: Any) -> float | None:
    opened.close()
    return getattr(monitor, "total_energy", None)


def _kind() -> Any:
    """Its class; `None` where the version has none, or one of another make."""
    kind = getattr(_attempted(lambda: import_module(MODULE)), "EnergyMonitor", None)
    return kind if hasattr(kind, "__enter__") and hasattr(kind, "total_energy") else None


def _attempted(step: Callable[[], Any]) -> Any:
    """What `step` gives; `None` where it fails."""
    try:
        return step()
    except Exception:
        logger.debug("TensorRT-LLM's own energy monitor cannot be used", exc_info=True)
        return None
