"""Everything that can be known to fail before a weight is read, found all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.checks import Check, EngineHost, attempt, combination_problems, quantised_already
from llenergymeasure.core.backends.pytorch.loading import check_passthrough, section_of
from llenergymeasure.core.backends.pytorch.placement import placement_here
from llenergymeasure.core.model.source import find_adapter, find_model

ATTENTION_PACKAGES: Final = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
}
"""Packages that provide an attention kernel outside PyTorch; one of them is enough."""


def preflight_problems(
    config: ExperimentConfig, cache_home: Path | None, load_tokenizer: Callable[[ExperimentConfig], object]
) -> list[str]:
    """Every reason why `config` cannot run here, each one sentence with its fix.

    Args:
        cache_home: Home of the Hub's cache; `None` leaves it to the Hub's client.
        load_tokenizer: Loads the model's tokenizer, or raises `BackendError`.
    """
    problems: list[str] = []
    section = section_of(config)
    placement = attempt(lambda: placement_here(section), problems)
    source = attempt(lambda: find_model(config.model, config.revision, cache_home=cache_home), problems)
    if source is not None:
        attempt(lambda: load_tokenizer(config), problems)
    adapter, assistant = config.lora, section.assistant_model
    if adapter is not None:
        attempt(lambda: find_adapter(adapter, cache_home), problems)
    if assistant is not None:
        attempt(lambda: find_model(assistant, None, cache_home=cache_home, what="pytorch.assistant_model"), problems)
    attempt(lambda: check_passthrough(config), problems)
    on_gpu = placement.on_gpu if placement is not None else None
    return problems + combination_problems(config, EngineHost(source, on_gpu), CHECKS)


def _adapter_can_be_loaded(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if config.lora is not None and not host.is_installed("peft"):
        yield 'lora: needs peft, which is not installed. Install it with: pip install "llenergymeasure[pytorch]"'


def _quantisation_is_possible(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    bits = section_of(config).loading_bits
    if bits is None:
        return
    name = f"load_in_{bits}bit"
    if not host.is_installed("bitsandbytes"):
        yield f"pytorch.{name}: needs bitsandbytes, which is not installed. Install it with: pip install bitsandbytes"
    yield from quantised_already(config, host, name)


def _attention_kernel_is_there(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    kernel = section_of(config).attn_implementation
    packages = ATTENTION_PACKAGES.get(kernel or "")
    if packages is None:
        return
    if host.on_gpu is False:
        yield f"pytorch.attn_implementation: {kernel} needs a CUDA GPU. Use sdpa or eager."
    if not any(host.is_installed(package) for package in packages):
        yield (
            f"pytorch.attn_implementation: {kernel} needs {' or '.join(packages)}, which is not installed. "
            f"Install it, or use sdpa."
        )
    if config.precision == "fp32":
        yield f"pytorch.attn_implementation: {kernel} has no fp32 kernels. Use sdpa, or precision: bf16."


def _compiler_takes_the_mode(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    section = section_of(config)
    if section.torch_compile_mode is not None and section.torch_compile_backend not in (None, "inductor"):
        yield (
            f"pytorch.torch_compile_mode: {section.torch_compile_mode!r} is a mode of inductor, and "
            f"torch_compile_backend={section.torch_compile_backend!r} ignores it. Remove one of the two."
        )


def _compiler_backend_fits(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if section_of(config).torch_compile_backend == "cudagraphs" and host.on_gpu is False:
        yield "pytorch.torch_compile_backend: cudagraphs needs a CUDA GPU. Remove it, or run on a GPU."


def _cache_kind_is_possible(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    kind = section_of(config).cache_implementation
    if kind in ("offloaded", "offloaded_static") and host.on_gpu is False:
        yield f"pytorch.cache_implementation: {kind} moves keys and values off a GPU, and there is none. Remove it."
    if kind == "quantized" and not host.is_installed("optimum"):
        yield (
            "pytorch.cache_implementation: quantized needs optimum-quanto, which is not installed. "
            "Install it with: pip install optimum-quanto"
        )


def _tf32_has_an_effect(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if section_of(config).allow_tf32 is not None and host.on_gpu is False:
        yield "pytorch.allow_tf32: has no effect on the CPU. Remove it, or run on a GPU."


CHECKS: Final[tuple[Check, ...]] = (
    _adapter_can_be_loaded,
    _quantisation_is_possible,
    _attention_kernel_is_there,
    _compiler_takes_the_mode,
    _compiler_backend_fits,
    _cache_kind_is_possible,
    _tf32_has_an_effect,
)
