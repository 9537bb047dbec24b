"""What vLLM's workers are asked by this package; vLLM mixes this class into its own (`worker_extension_cls`).

A worker may be a process of its own, so that its figures are to be had from inside only. vLLM calls these by name.
"""

from __future__ import annotations

from typing import Any

import torch

from llenergymeasure.core.backends.host_memory import peak_rss_mb, start_rss_peak
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.core.gpu.visible import uuid_of_torch
from llenergymeasure.core.model.memory import MB

WORKER_EXTENSION = f"{__name__}.WorkerFigures"


class WorkerFigures:
    """Methods of every worker; their names must not be any of vLLM's."""

    device: torch.device
    model_runner: Any
    _llem_rss_peak_is_ours = False

    def llem_device(self) -> tuple[DeviceId, str]:
        """Identity and name of what it computes on."""
        if self.device.type != "cuda":
            return CPU_DEVICE, "CPU"
        return uuid_of_torch(torch, self.device), str(torch.cuda.get_device_name(self.device))

    def llem_attention(self) -> list[str]:
        """Names of the attention backends that its layers were given."""
        groups = [group for groups in self.model_runner.attn_groups for group in groups]
        return sorted({str(group.backend.get_name()) for group in groups})

    def llem_synchronize(self) -> None:
        """Return when its device has finished all work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def llem_start_peak(self) -> None:
        """Start a new peak of its memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._llem_rss_peak_is_ours = start_rss_peak()

    def llem_memory(self) -> dict[str, float | None]:
        """Peak since `llem_start_peak`, weights and key-value cache in MB; on the CPU, the peak is its process's.

        Weights are what vLLM says that loading them took; on the CPU they are repacked out of sight, and it says
        nothing.
        """
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            peak_mb: float | None = torch.cuda.max_memory_allocated(self.device) / MB
        else:
            peak_mb = peak_rss_mb() if self._llem_rss_peak_is_ours else None
        loaded_bytes = getattr(self.model_runner, "model_memory_usage", None) if on_gpu else None
        return {
            "peak_mb": peak_mb,
            "model_mb": None if loaded_bytes is None else loaded_bytes / MB,
            "kv_cache_mb": _size_mb(self.model_runner.kv_caches),
        }


def _size_mb(tensors: list[torch.Tensor]) -> float:
    """Memory behind tensors, shared memory once."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return float(sum(storages.values())) / MB
