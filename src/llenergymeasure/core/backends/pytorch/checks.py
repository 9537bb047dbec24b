"""Everything that can be known to fail before a weight is read, found all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Final, TypeVar

from llenergymeasure.config.backend_configs import PyTorchConfig
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.pytorch.adapter import find_adapter
from llenergymeasure.core.backends.pytorch.loading import check_passthrough, context_length
from llenergymeasure.core.backends.pytorch.placement import Placement, placement_here
from llenergymeasure.core.model.source import ModelSource, find_model
from llenergymeasure.exceptions import BackendError, ConfigError

T = TypeVar("T")

ATTENTION_PACKAGES: Final = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
}
"""Packages that provide an attention kernel outside PyTorch; one of them is enough."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an experiment finds on this machine.

    Args:
        placement: Where the model would go; `None` when there is no place for it.
        source: The model's files; `None` when they cannot be had.
        is_installed: Whether a package can be imported.
    """

    placement: Placement | None
    source: ModelSource | None
    is_installed: Callable[[str], bool]


def preflight_problems(
    config: ExperimentConfig, cache_home: Path | None, load_tokenizer: Callable[[ExperimentConfig], object]
) -> list[str]:
    """Every reason why `config` cannot run here, each one sentence with its fix.

    Args:
        config: The experiment.
        cache_home: Home of the Hub's cache; `None` leaves it to the Hub's client.
        load_tokenizer: Loads the model's tokenizer, or raises `BackendError`.
    """
    problems: list[str] = []
    section = config.pytorch or PyTorchConfig()
    placement = _attempt(lambda: placement_here(section), problems)
    source = _attempt(lambda: find_model(config.model, config.revision, cache_home=cache_home), problems)
    if source is not None:
        _attempt(lambda: load_tokenizer(config), problems)
    adapter, assistant = config.lora, section.assistant_model
    if adapter is not None:
        _attempt(lambda: find_adapter(adapter, cache_home), problems)
    if assistant is not None:
        _attempt(lambda: find_model(assistant, None, cache_home=cache_home, what="pytorch.assistant_model"), problems)
    _attempt(lambda: check_passthrough(config), problems)
    return problems + combination_problems(config, Surroundings(placement, source, _is_installed))


def combination_problems(config: ExperimentConfig, here: Surroundings) -> list[str]:
    """Settings of `config` that cannot work with what is `here`."""
    return [problem for check in _CHECKS for problem in check(config, here)]


def _attempt(find: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return find()
    except (BackendError, ConfigError) as error:
        problems.append(str(error))
        return None


def _is_installed(package: str) -> bool:
    return util.find_spec(package) is not None


def _context_is_long_enough(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    context = context_length(here.source.config) if here.source is not None else None
    wanted = config.max_input_tokens + config.max_output_tokens
    if context is not None and wanted > context:
        yield (
            f"max_input_tokens ({config.max_input_tokens}) + max_output_tokens ({config.max_output_tokens}) "
            f"= {wanted}, but {config.model} takes {context} tokens in all. "
            f"Lower them, e.g. max_input_tokens: {max(context - config.max_output_tokens, 1)}."
        )


def _revision_has_an_effect(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    if config.revision is not None and here.source is not None and here.source.revision is None:
        yield (
            f"revision: {config.revision!r} names a commit on the Hub, and {config.model} is not loaded from there. "
            "Remove revision, or name the model by its id on the Hub."
        )


def _has_a_decoder(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    if here.source is not None and here.source.config.get("is_encoder_decoder"):
        yield f"model: {config.model} is an encoder-decoder model. Only decoder-only language models are supported."


def _adapter_can_be_loaded(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    if config.lora is not None and not here.is_installed("peft"):
        yield 'lora: needs peft, which is not installed. Install it with: pip install "llenergymeasure[pytorch]"'


def _quantisation_is_possible(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    section = config.pytorch
    if section is None or not (section.load_in_4bit or section.load_in_8bit):
        return
    name = "load_in_4bit" if section.load_in_4bit else "load_in_8bit"
    if not here.is_installed("bitsandbytes"):
        yield f"pytorch.{name}: needs bitsandbytes, which is not installed. Install it with: pip install bitsandbytes"
    if here.source is not None and "quantization_config" in here.source.config:
        yield f"pytorch.{name}: {config.model} is quantised already. Remove {name}."


def _attention_kernel_is_there(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    kernel = config.pytorch.attn_implementation if config.pytorch else None
    packages = ATTENTION_PACKAGES.get(kernel or "")
    if packages is None:
        return
    if here.placement is not None and not here.placement.on_gpu:
        yield f"pytorch.attn_implementation: {kernel} needs a CUDA GPU. Use sdpa or eager."
    if not any(here.is_installed(package) for package in packages):
        yield (
            f"pytorch.attn_implementation: {kernel} needs {' or '.join(packages)}, which is not installed. "
            f"Install it, or use sdpa."
        )
    if config.precision == "fp32":
        yield f"pytorch.attn_implementation: {kernel} has no fp32 kernels. Use sdpa, or precision: bf16."


def _compiler_takes_the_mode(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    section = config.pytorch
    if section is None or section.torch_compile_mode is None:
        return
    if section.torch_compile_backend not in (None, "inductor"):
        yield (
            f"pytorch.torch_compile_mode: {section.torch_compile_mode!r} is a mode of inductor, and "
            f"torch_compile_backend={section.torch_compile_backend!r} ignores it. Remove one of the two."
        )


def _compiler_backend_fits(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    backend = config.pytorch.torch_compile_backend if config.pytorch else None
    if backend == "cudagraphs" and here.placement is not None and not here.placement.on_gpu:
        yield "pytorch.torch_compile_backend: cudagraphs needs a CUDA GPU. Remove it, or run on a GPU."


def _cache_kind_is_possible(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    kind = config.pytorch.cache_implementation if config.pytorch else None
    if kind in ("offloaded", "offloaded_static") and here.placement is not None and not here.placement.on_gpu:
        yield f"pytorch.cache_implementation: {kind} moves keys and values off a GPU, and there is none. Remove it."
    if kind == "quantized" and not here.is_installed("optimum"):
        yield (
            "pytorch.cache_implementation: quantized needs optimum-quanto, which is not installed. "
            "Install it with: pip install optimum-quanto"
        )


def _tf32_has_an_effect(config: ExperimentConfig, here: Surroundings) -> Iterator[str]:
    if config.pytorch is None or config.pytorch.allow_tf32 is None:
        return
    if here.placement is not None and not here.placement.on_gpu:
        yield "pytorch.allow_tf32: has no effect on the CPU. Remove it, or run on a GPU."


_CHECKS: Final[tuple[Callable[[ExperimentConfig, Surroundings], Iterator[str]], ...]] = (
    _context_is_long_enough,
    _revision_has_an_effect,
    _has_a_decoder,
    _adapter_can_be_loaded,
    _quantisation_is_possible,
    _attention_kernel_is_there,
    _compiler_takes_the_mode,
    _compiler_backend_fits,
    _cache_kind_is_possible,
    _tf32_has_an_effect,
)
