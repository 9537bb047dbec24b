"""How much memory a loaded model takes, without asking the device anything inside the window."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel

from llenergymeasure.core.backends.protocol import MemoryStats
from llenergymeasure.core.model.memory import kv_cache_bytes

MB: Final = 1_000_000
"""Bytes per MB."""

RESET_PEAK_RSS: Final = "5"
"""Written to `/proc/self/clear_refs`, it makes the kernel start a new peak of the resident set (proc(5))."""


class MemoryMeter:
    """Peak memory, weights and key-value cache of one loaded model.

    Args:
        model: The loaded model.
        proc: Where the kernel tells about this process.
    """

    def __init__(self, model: PreTrainedModel, proc: Path = Path("/proc/self")) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.gpu_indices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
        self._model_mb = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MB
        self._config = model.config.to_dict()
        self._value_bytes = torch.empty((), dtype=model.dtype).element_size()
        self._proc = proc
        self._peak_is_ours = False
        self._largest_cache_bytes: float | None = None

    def reset_peak(self) -> None:
        """Start a new peak; on the CPU only where the kernel lets a process do that."""
        self._largest_cache_bytes = None
        for index in self.gpu_indices:
            torch.cuda.reset_peak_memory_stats(index)
        if not self.gpu_indices:
            try:
                (self._proc / "clear_refs").write_text(RESET_PEAK_RSS)
            except OSError:
                self._peak_is_ours = False
            else:
                self._peak_is_ours = True

    def note_batch(self, rows: int, tokens: int) -> None:
        """Remember the size of a batch's key-value cache.

        Args:
            rows: Sequences in the cache, beams included.
            tokens: Positions per sequence, padding included.
        """
        size = kv_cache_bytes(self._config, rows, tokens, self._value_bytes)
        if size is not None:
            self._largest_cache_bytes = max(size, self._largest_cache_bytes or 0)

    def stats(self) -> MemoryStats:
        """The figures since the last reset. On the CPU, the peak is the process's resident memory."""
        return MemoryStats(
            peak_mb=self._peak_mb(),
            model_mb=self._model_mb,
            kv_cache_mb=None if self._largest_cache_bytes is None else self._largest_cache_bytes / MB,
        )

    def _peak_mb(self) -> float | None:
        if self.gpu_indices:
            return float(sum(torch.cuda.max_memory_allocated(index) for index in self.gpu_indices)) / MB
        return peak_rss_mb(self._proc) if self._peak_is_ours else None


def peak_rss_mb(proc: Path = Path("/proc/self")) -> float | None:
    """Highest resident memory of a process in MB since its start or last reset; `None` where the kernel hides it."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", (proc / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 / MB if match else None
