"""What can be known before a weight is read and CUDA starts: where the model goes, and all that stands in its way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from llenergymeasure.config.backend_configs import PyTorchConfig
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.checks import (
    Check,
    EngineHost,
    attempt,
    combination_problems,
    needs_package,
    quantised_already,
)
from llenergymeasure.core.backends.pytorch.compiling import STATIC_CACHES
from llenergymeasure.core.backends.pytorch.model_checks import MODEL_CHECKS
from llenergymeasure.core.backends.shared import OwnModel, gpu_uuids
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId, GpuDriverError
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import cuda_uuids_of_torch, visible_gpus
from llenergymeasure.core.model.source import find_adapter
from llenergymeasure.exceptions import BackendError

OWNED_ARGUMENTS: Final[Mapping[str, str]] = {
    "dtype": "precision",
    "torch_dtype": "precision",
    "device_map": "pytorch.device and pytorch.device_map",
    "config": "model",
    "state_dict": "model",
    "cache_dir": "output.model_cache_dir of the user config",
    "output_loading_info": "nothing (it is always on)",
}
"""Arguments of `from_pretrained` that passthrough_kwargs may not set, and what sets them instead."""

ATTENTION_PACKAGES: Final = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
}
"""Packages that provide an attention kernel outside PyTorch; one of them is enough."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes.

    Args:
        device_map: One device, or a strategy of accelerate's for spreading the model.
        gpu_indices: The GPUs it may use, by CUDA's index; empty for the CPU.
    """

    device_map: str
    gpu_indices: tuple[int, ...]

    @property
    def on_gpu(self) -> bool:
        """Whether the model goes to GPUs."""
        return bool(self.gpu_indices)


def section_of(config: ExperimentConfig) -> PyTorchConfig:
    """The experiment's pytorch section; one of defaults where it is left out."""
    return config.pytorch or PyTorchConfig()


def choose_placement(section: PyTorchConfig, gpu_count: int, *, rocm: bool = False, apple: bool = False) -> Placement:
    """Turn `pytorch.device` and `device_map` into a place, with the GPUs that this process's PyTorch can use.

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
        kind = "Apple GPUs (MPS) are not supported" if apple else "no CUDA GPU is available to PyTorch"
        build = "" if apple or torch.version.cuda else f" (torch {torch.__version__} is a build without CUDA)"
        raise BackendError(f"{kind}{build}. To measure on the CPU, pass --device cpu or set pytorch.device: cpu.")
    if section.device_map is not None:
        return Placement(section.device_map, tuple(range(gpu_count)))
    return Placement("cuda:0", (0,))


def placement_here(section: PyTorchConfig) -> Placement:
    """`choose_placement` for this machine."""
    return choose_placement(
        section,
        torch.cuda.device_count(),
        rocm=torch.version.hip is not None,
        apple=torch.backends.mps.is_available(),
    )


def planned_devices(section: PyTorchConfig) -> tuple[DeviceId, ...]:
    """The devices that a model placed by `section` will use; with `num_processes`, those of all copies.

    NVML is asked rather than CUDA: a CUDA context would raise the idle power that the baseline is about to measure.
    """
    if not placement_here(section).on_gpu:
        return (CPU_DEVICE,)
    uuids = gpu_uuids()
    return uuids[: section.gpu_count(len(uuids))]


def used_devices(gpu_indices: Sequence[int]) -> tuple[DeviceId, ...]:
    """Identities of the GPUs that hold a loaded model's weights, by CUDA's index; none is the CPU."""
    if not gpu_indices:
        return (CPU_DEVICE,)
    uuids = cuda_uuids_of_torch(torch)
    try:
        gpus = visible_gpus(os.environ, open_nvml(), uuids)
    except GpuDriverError:
        gpus = ()
    names = {gpu.cuda_index: gpu.uuid for gpu in gpus} if len(gpus) == len(uuids) else dict(enumerate(uuids))
    return tuple(names[index] for index in gpu_indices)


def preflight_problems(config: ExperimentConfig, model: OwnModel) -> list[str]:
    """Every reason why `config` cannot run here, each one sentence with its fix."""
    problems: list[str] = []
    section = section_of(config)
    placement = attempt(lambda: placement_here(section), problems)
    source = model.checked(config, problems)
    if (adapter := config.lora) is not None:
        attempt(lambda: find_adapter(adapter, model.cache_home), problems)
    model.check_drafter(section.assistant_model, "pytorch.assistant_model", problems)
    attempt(lambda: check_passthrough(config), problems)
    on_gpu = placement.on_gpu if placement is not None else None
    return problems + combination_problems(config, EngineHost(source, on_gpu), CHECKS)


def check_passthrough(config: ExperimentConfig) -> None:
    """Refuse `passthrough_kwargs` that would set what a field of the config sets (`BackendError`)."""
    for key in config.passthrough_kwargs or {}:
        if key in OWNED_ARGUMENTS:
            raise BackendError(f"passthrough_kwargs.{key}: set by {OWNED_ARGUMENTS[key]}. Remove it.")


def _adapter_can_be_loaded(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if config.lora is not None:
        yield from needs_package(host, "lora", ("peft",), 'Install it with: pip install "llenergymeasure[pytorch]"')


def _quantisation_is_possible(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    bits = section_of(config).loading_bits
    if bits is None:
        return
    name = f"load_in_{bits}bit"
    how = "Install it with: pip install bitsandbytes"
    yield from needs_package(host, f"pytorch.{name}", ("bitsandbytes",), how)
    yield from quantised_already(config, host, name)


def _attention_kernel_is_there(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    kernel = section_of(config).attn_implementation
    packages = ATTENTION_PACKAGES.get(kernel or "")
    if packages is None:
        return
    if host.on_gpu is False:
        yield f"pytorch.attn_implementation: {kernel} needs a CUDA GPU. Use sdpa or eager."
    yield from needs_package(host, f"pytorch.attn_implementation: {kernel}", packages, "Install it, or use sdpa.")


def _compiler_does_as_told(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    section = section_of(config)
    if section.torch_compile_mode is not None and section.torch_compile_backend not in (None, "inductor"):
        yield (
            f"pytorch.torch_compile_mode: {section.torch_compile_mode!r} is a mode of inductor, and "
            f"torch_compile_backend={section.torch_compile_backend!r} ignores it. Remove one of the two."
        )
    if section.torch_compile_backend == "cudagraphs" and host.on_gpu is False:
        yield "pytorch.torch_compile_backend: cudagraphs needs a CUDA GPU. Remove it, or run on a GPU."
    stays = section.use_cache is False or section.cache_implementation in STATIC_CACHES
    if host.on_gpu and not stays and (recorder := _graph_recorder(section)) is not None:
        yield (
            f"pytorch.{recorder} records CUDA graphs, and each replay overwrites the keys and values that a growing "
            "cache has of the one before. Set pytorch.cache_implementation: static, or choose what records none: "
            f"{'inductor' if section.torch_compile_mode is None else 'default or max-autotune-no-cudagraphs'}."
        )


def _graph_recorder(section: PyTorchConfig) -> str | None:
    """The setting, if any, for which PyTorch records CUDA graphs."""
    if section.torch_compile_mode in ("reduce-overhead", "max-autotune"):
        return f"torch_compile_mode: {section.torch_compile_mode}"
    return "torch_compile_backend: cudagraphs" if section.torch_compile_backend == "cudagraphs" else None


def _cache_kind_is_possible(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    kind = section_of(config).cache_implementation
    if kind in ("offloaded", "offloaded_static") and host.on_gpu is False:
        yield f"pytorch.cache_implementation: {kind} moves keys and values off a GPU, and there is none. Remove it."
    if kind == "quantized":
        how = "Install it with: pip install optimum-quanto"
        yield from needs_package(host, "pytorch.cache_implementation: quantized", ("optimum",), how)


def _tf32_has_an_effect(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if section_of(config).allow_tf32 is not None and host.on_gpu is False:
        yield "pytorch.allow_tf32: has no effect on the CPU. Remove it, or run on a GPU."


CHECKS: Final[tuple[Check, ...]] = (
    _adapter_can_be_loaded,
    _quantisation_is_possible,
    _attention_kernel_is_there,
    _compiler_does_as_told,
    _cache_kind_is_possible,
    _tf32_has_an_effect,
    *MODEL_CHECKS,
)
