"""What can be known before TensorRT-LLM starts: where the model goes, and all that stands in its way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.checks import Check, EngineHost, attempt, combination_problems, quantised_already
from llenergymeasure.core.backends.shared import OwnModel
from llenergymeasure.core.backends.tensorrt.engine import (
    LAST_WITH_BUILDER,
    NEED_A_BUILD,
    NEED_PYTORCH,
    OWNED_ARGUMENTS,
    can_build,
    engine_class,
    given_fields,
    has_salts,
    known_arguments,
    own_arguments,
    section_of,
    unknown_fields,
)
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.exceptions import BackendError

FIRST_WITH_SALTS: Final = "1.1"
"""First version that keeps the cached blocks of one batch from another."""


def planned_devices(config: ExperimentConfig, gpus: tuple[DeviceId, ...]) -> tuple[DeviceId, ...]:
    """The devices that the workers will use: the first ones that CUDA shows, one for each of them.

    Raises:
        BackendError: There are none, or not enough.
    """
    if not gpus:
        raise BackendError("no CUDA GPU is available to TensorRT-LLM, which runs on nothing else. Use another backend.")
    wanted = section_of(config).gpu_count(len(gpus))
    if wanted > len(gpus):
        raise BackendError(
            f"tensorrt.tp_size × pp_size: {wanted} GPUs are asked for, and {len(gpus)} are visible. Lower them, or run "
            "where there are more."
        )
    return gpus[:wanted]


def preflight_problems(
    config: ExperimentConfig,
    gpus: tuple[DeviceId, ...],
    version: str,
    model: OwnModel,
) -> list[str]:
    """Every reason why `config` cannot run here, each one sentence with its fix."""
    problems: list[str] = []
    devices = attempt(lambda: planned_devices(config, gpus), problems)
    source = model.checked(config, problems)
    if (drafting := section_of(config).speculative_config) is not None:
        model.check_drafter(drafting.speculative_model, "tensorrt.speculative_config.speculative_model", problems)
    problems += attempt(lambda: settings_problems(config, version), problems) or []
    on_gpu = None if devices is None else True
    return problems + combination_problems(config, EngineHost(source, on_gpu), CHECKS)


def check_settings(config: ExperimentConfig, version: str) -> None:
    """Refuse what the installed version cannot do (`BackendError`)."""
    for problem in settings_problems(config, version):
        raise BackendError(problem)


def settings_problems(config: ExperimentConfig, version: str) -> list[str]:
    """What the installed version has against the settings: by its generations of engines, then by its arguments."""
    mismatches = list(_generations_agree(config, version))
    return mismatches or list(_arguments_are_known(config, version))


def _generations_agree(config: ExperimentConfig, version: str) -> Iterator[str]:
    given = given_fields(section_of(config))
    building = [name for name in NEED_A_BUILD if name in given]
    other = [name for name in NEED_PYTORCH if name in given]
    if building and not can_build():
        for name in building:
            yield (
                f"tensorrt.{name}: needs an engine that is built ahead, and TensorRT-LLM {version} builds none. "
                f"Remove it, or use TensorRT-LLM {LAST_WITH_BUILDER} or earlier."
            )
    elif building and other:
        yield (
            f"tensorrt.{building[0]}: needs an engine that is built ahead, and {', '.join(other)} the PyTorch-based "
            "one. Remove the one or the other."
        )


def _arguments_are_known(config: ExperimentConfig, version: str) -> Iterator[str]:
    known, passed, own = known_arguments(config), config.passthrough_kwargs or {}, own_arguments(config, Path())
    for key in passed:
        if key in OWNED_ARGUMENTS:
            yield f"passthrough_kwargs.{key}: set by {OWNED_ARGUMENTS[key]}. Remove it."
        elif key not in known:
            yield f"passthrough_kwargs.{key}: TensorRT-LLM {version} has no such argument. Correct or remove it."
        elif key in own:
            yield (
                f"passthrough_kwargs.{key}: would replace {own[key]!r}, which other settings and this version need. "
                "Remove it, or what sets it in the tensorrt section."
            )
    for key in (*(key for key in own if key not in known), *unknown_fields(own)):
        yield f"tensorrt: TensorRT-LLM {version} does not take {key}. Remove what sets it, or use another version."
    cache = section_of(config).kv_cache_config
    if cache is not None and cache.enable_block_reuse and not has_salts(engine_class(config)):
        yield (
            f"tensorrt.kv_cache_config.enable_block_reuse: TensorRT-LLM {version} reuses the blocks of warm-up in the "
            f"measurement, which would cost nothing. Remove it, or use TensorRT-LLM {FIRST_WITH_SALTS} or later."
        )


def _lengths_fit(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    section, wanted = section_of(config), config.max_input_tokens + config.max_output_tokens
    if section.max_seq_len is not None and wanted > section.max_seq_len:
        yield (
            f"tensorrt.max_seq_len: {section.max_seq_len} is less than max_input_tokens ({config.max_input_tokens}) + "
            f"max_output_tokens ({config.max_output_tokens}) = {wanted}. Raise it to {wanted}."
        )
    step = section.max_num_tokens
    if step is not None and config.max_input_tokens > step and not section.enable_chunked_prefill:
        yield (
            f"tensorrt.max_num_tokens: {step} is less than max_input_tokens ({config.max_input_tokens}), and prompts "
            "are not cut. Raise it, lower max_input_tokens, or set tensorrt.enable_chunked_prefill: true."
        )
    if section.max_input_len is not None and config.max_input_tokens > section.max_input_len:
        yield (
            f"tensorrt.max_input_len: {section.max_input_len} is less than max_input_tokens "
            f"({config.max_input_tokens}). Raise it, or lower max_input_tokens."
        )


def _engine_is_there(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    path = section_of(config).engine_path
    if path is not None and not (Path(path) / "config.json").is_file():
        yield f"tensorrt.engine_path: {path} holds no built engine (config.json). Name the directory of one."


def _is_quantised_once(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if section_of(config).quantization is not None:
        yield from quantised_already(config, host, "quantization")


def _a_nucleus_has_a_size(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if not config.decoder.is_deterministic and config.decoder.top_p == 0.0:
        yield "decoder.top_p: TensorRT-LLM takes values above 0. Use decoder.temperature: 0 for the likeliest token."


CHECKS: Final[tuple[Check, ...]] = (_lengths_fit, _engine_is_there, _is_quantised_once, _a_nucleus_has_a_size)
