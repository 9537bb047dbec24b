"""Where a PyTorch model goes, decided before CUDA is started and checked after loading."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from llenergymeasure.config.backend_configs import PyTorchConfig
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId, GpuDriverError
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import cuda_uuids_of_torch, order_is_certain, visible_gpus
from llenergymeasure.exceptions import BackendError


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes.

    Args:
        device_map: What `from_pretrained` gets: one device, or a strategy of accelerate's for spreading the model.
        gpu_indices: The GPUs it may use, by CUDA's index; empty for the CPU.
    """

    device_map: str
    gpu_indices: tuple[int, ...]

    @property
    def on_gpu(self) -> bool:
        """Whether the model goes to GPUs."""
        return bool(self.gpu_indices)


def choose_placement(section: PyTorchConfig, gpu_count: int, *, rocm: bool = False, apple: bool = False) -> Placement:
    """Turn `pytorch.device`, `device_map` and `num_processes` into a place.

    Args:
        section: The experiment's pytorch section.
        gpu_count: GPUs that this process's PyTorch can use.
        rocm: Whether PyTorch was built for AMD GPUs.
        apple: Whether this is a machine with an Apple GPU.

    Raises:
        BackendError: No GPU where one is required, or one that is not supported.
    """
    if section.device == "cpu" or (section.device == "auto" and gpu_count == 0):
        if section.device_map is not None:
            raise BackendError(
                f"pytorch.device_map: {section.device_map!r} spreads the model over GPUs, and there is none. Remove it."
            )
        return Placement("cpu", ())
    if rocm:
        raise BackendError(
            "AMD GPUs (ROCm) are not supported: their energy cannot be metered. Use pytorch.device: cpu."
        )
    if gpu_count == 0:
        raise BackendError(_no_gpu(apple))
    if section.device_map is not None:
        return Placement(section.device_map, tuple(range(gpu_count)))
    return Placement("cuda:0", (0,))


def placement_here(section: PyTorchConfig) -> Placement:
    """`choose_placement` for this machine.

    Raises:
        BackendError: See `choose_placement`.
    """
    return choose_placement(
        section,
        torch.cuda.device_count(),
        rocm=torch.version.hip is not None,
        apple=torch.backends.mps.is_available(),
    )


def planned_devices(section: PyTorchConfig) -> tuple[DeviceId, ...]:
    """The devices that a model placed by `section` will use; with `num_processes`, those of all copies.

    NVML is asked rather than CUDA: a CUDA context would raise the idle power that the baseline is about to measure.

    Raises:
        BackendError: See `choose_placement`.
    """
    placement = placement_here(section)
    if not placement.on_gpu:
        return (CPU_DEVICE,)
    uuids = _gpu_uuids()
    if section.device_map is None and (section.num_processes or 1) > 1:
        return uuids[: section.num_processes]
    return tuple(uuids[index] for index in placement.gpu_indices)


def used_devices(devices: Iterable[torch.device]) -> tuple[DeviceId, ...]:
    """Identities of the devices that hold a loaded model's weights."""
    used = set(devices)
    indices = sorted({device.index or 0 for device in used if device.type == "cuda"})
    if not indices:
        return (CPU_DEVICE,)
    uuids = cuda_uuids_of_torch(torch)
    try:
        gpus = visible_gpus(os.environ, open_nvml(), uuids)
    except GpuDriverError:
        gpus = ()
    names = {gpu.cuda_index: gpu.uuid for gpu in gpus} if len(gpus) == len(uuids) else dict(enumerate(uuids))
    return tuple(names[index] for index in indices)


def _gpu_uuids() -> tuple[DeviceId, ...]:
    try:
        nvml = open_nvml()
        if order_is_certain(os.environ, nvml):
            gpus = visible_gpus(os.environ, nvml)
            if len(gpus) == torch.cuda.device_count():
                return tuple(gpu.uuid for gpu in gpus)
    except GpuDriverError:
        pass  # a container may have CUDA without NVML; the energy backend will say what that costs
    return cuda_uuids_of_torch(torch)


def _no_gpu(apple: bool) -> str:
    kind = "Apple GPUs (MPS) are not supported" if apple else "no CUDA GPU is available to PyTorch"
    build = "" if apple or torch.version.cuda else f" (torch {torch.__version__} is a build without CUDA)"
    return f"{kind}{build}. To measure on the CPU, pass --device cpu or set pytorch.device: cpu."
