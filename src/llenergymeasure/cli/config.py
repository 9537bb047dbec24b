"""`llem config`: what this machine can do, and the settings in force. It writes nothing and never fails."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, Final
from urllib.parse import urlsplit

from llenergymeasure.config.base import by_dotted_path
from llenergymeasure.config.user_config import (
    environment_settings,
    get_user_config_path,
    load_user_config,
)
from llenergymeasure.config.yaml_io import load_document
from llenergymeasure.constants import VERSION
from llenergymeasure.core.backends.registry import DEFAULT_BACKEND
from llenergymeasure.core.capabilities import Capabilities, collect_capabilities
from llenergymeasure.core.gpu.driver import Gpu
from llenergymeasure.core.host.docker import default_image
from llenergymeasure.core.host.host import Capability
from llenergymeasure.exceptions import ConfigError

WIDTH: Final = 110
LABEL_WIDTH: Final = 13

_FIRST_RUN: Final = "llem run --model builtin/tiny-llama -n 20"

FROM_DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting in force.

    Args:
        path: Its dotted path in the file.
        value: As it may be shown: a secret part is replaced.
        source: `default`, `file`, or the environment variable that set it.
    """

    path: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """All settings in force, or why there are none.

    Args:
        file: Where the user's file is or would be.
        settings: Empty where there is a problem.
        problem: Why file and environment cannot be used, as every run would say it.
    """

    file: Path
    file_exists: bool
    settings: tuple[Setting, ...]
    problem: str | None = None


def config_text(*, verbose: bool) -> str:
    """The page that `llem config` prints."""
    settings = effective_settings(get_user_config_path(), os.environ)
    values = {setting.path: setting.value for setting in settings.settings}

    def image_of(backend: str) -> str:
        kind, _, image = values.get(f"runners.{backend}", "").partition(":")
        return image if kind == "docker" else default_image(backend)

    return render_capabilities(collect_capabilities(image_of=image_of), settings, verbose=verbose)


def effective_settings(file: Path, environ: Mapping[str, str]) -> EffectiveSettings:
    """Read file and environment as a run would; a fault in them is part of the answer."""
    try:
        config = load_user_config(file, environ)
        in_file = dict(by_dotted_path(load_document(file, empty_is_fine=True).data)) if file.exists() else {}
        _, variables = environment_settings(environ)
    except ConfigError as error:
        return EffectiveSettings(file, file.exists(), (), str(error))
    settings = tuple(
        Setting(path, _shown(path, value), variables.get(path, "file" if path in in_file else FROM_DEFAULT))
        for path, value in by_dotted_path(config.model_dump())
    )
    return EffectiveSettings(file, file.exists(), settings)


def render_capabilities(capabilities: Capabilities, settings: EffectiveSettings, *, verbose: bool) -> str:
    """The whole page; `verbose` tells the sources of all settings, and everything known of each GPU."""
    sections = (
        [f"llenergymeasure {VERSION}, Python {platform.python_version()}"],
        ["Machine", *_machine(capabilities, verbose=verbose)],
        ["Inference engines", *_list(capabilities.engines)],
        ["Docker, and an image of each engine", *_list((capabilities.docker, *capabilities.images))],
        ["Energy backends", *_list(capabilities.meters)],
        _settings(settings, verbose=verbose),
        ["What to do next", *(f"  {step}" for step in next_steps(capabilities, settings))],
    )
    return "\n\n".join("\n".join(section) for section in sections)


def next_steps(capabilities: Capabilities, settings: EffectiveSettings) -> list[str]:
    """What stands between this machine and a measurement, and the command that takes one."""
    steps = []
    if settings.problem is not None:
        steps.append(f"Mend {settings.file if settings.file_exists else 'the variable'}: no run starts before that.")
    usable = _usable_engines(capabilities, settings)
    if not usable:
        steps.append('Install an engine:  pip install "llenergymeasure[pytorch]"')
    if not any(meter.works for meter in capabilities.meters):
        steps.append('No energy can be measured here. For an estimate:  pip install "llenergymeasure[codecarbon]"')
    if any(gpu.persistence_mode is False for gpu in capabilities.gpus):
        steps.append("Keep the driver loaded between runs:  sudo nvidia-smi -pm 1")
    if steps and settings.problem is not None:
        return steps
    flags = f" --backend {usable[0]}" if usable and DEFAULT_BACKEND not in usable else ""
    flags += "" if capabilities.gpus or flags else " --device cpu"
    steps.append(f"Measure:  {_FIRST_RUN}{flags}")
    return steps


def _usable_engines(capabilities: Capabilities, settings: EffectiveSettings) -> list[str]:
    """Engines that work where their runner has them run."""
    elsewhere = {setting.path for setting in settings.settings if setting.value.startswith("docker:")}

    def of(found: Iterable[Capability], *, in_docker: bool) -> list[str]:
        return [each.name for each in found if each.works and (f"runners.{each.name}" in elsewhere) == in_docker]

    return [*of(capabilities.engines, in_docker=False), *of(capabilities.images, in_docker=True)]


def _machine(capabilities: Capabilities, *, verbose: bool) -> Iterator[str]:
    if capabilities.gpu_problem is not None:
        yield from _entry("GPUs", f"none: {capabilities.gpu_problem}")
    for index, gpu in enumerate(capabilities.gpus):
        yield from _entry(f"GPU {index}", _gpu(gpu))
        if verbose:
            for detail in _gpu_details(gpu):
                yield from _entry("", detail)
    yield from _entry("Driver", capabilities.driver_version or "none")
    cuda = capabilities.cuda
    yield from _entry("CUDA", "none" if cuda is None else f"{cuda.version} (from {cuda.source.replace('_', ' ')})")
    cpu = capabilities.cpu
    governor = f", governor {cpu.governor}" if cpu.governor else ""
    yield from _entry("Processor", f"{cpu.model or 'unknown'} ({cpu.platform}{governor})")
    yield from _entry("Container", capabilities.container.runtime or "none")


def _gpu(gpu: Gpu) -> str:
    parts = [gpu.name]
    if gpu.memory_total_mb is not None:
        free = "" if gpu.memory_free_mb is None else f" ({gpu.memory_free_mb / 1000:.1f} GB free)"
        parts.append(f"{gpu.memory_total_mb / 1000:.1f} GB{free}")
    if gpu.power_limit_w is not None:
        parts.append(f"limit {gpu.power_limit_w:.0f} W")
    return ", ".join(parts)


def _gpu_details(gpu: Gpu) -> Iterator[str]:
    yield gpu.uuid
    facts = (
        ("compute capability", gpu.compute_capability),
        ("PCIe generation", gpu.pcie_generation),
        ("default limit", None if gpu.default_power_limit_w is None else f"{gpu.default_power_limit_w:.0f} W"),
        ("SM clock up to", None if gpu.max_sm_clock_mhz is None else f"{gpu.max_sm_clock_mhz:.0f} MHz"),
        ("temperature", None if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} °C"),
        ("persistence mode", None if gpu.persistence_mode is None else "on" if gpu.persistence_mode else "off"),
        ("MIG", None if gpu.mig_enabled is None else "on" if gpu.mig_enabled else "off"),
    )
    yield ", ".join(f"{name} {value}" for name, value in facts if value is not None)


def _list(capabilities: Iterable[Capability]) -> Iterator[str]:
    for capability in capabilities:
        yield from _entry(capability.name, f"{'yes' if capability.works else 'no '}  {capability.detail}", hang=5)


def _settings(settings: EffectiveSettings, *, verbose: bool) -> list[str]:
    lines = [f"User settings: {settings.file}" + ("" if settings.file_exists else " (no such file: defaults hold)")]
    if settings.problem is not None:
        return [*lines, *(f"  {line}" for line in settings.problem.splitlines())]
    name_width = max(len(setting.path) for setting in settings.settings)
    value_width = max(len(setting.value) for setting in settings.settings)
    for setting in settings.settings:
        remarks = [setting.source] if verbose or setting.source != FROM_DEFAULT else []
        remark = f"({'; '.join(remarks)})" if remarks else ""
        lines.append(f"  {setting.path:<{name_width}}  {setting.value:<{value_width}}  {remark}".rstrip())
    return lines


def _entry(label: str, text: str, hang: int = 0) -> list[str]:
    """A label and its text, wrapped under itself; what is copied from a terminal is never broken inside a word."""
    indent = " " * (2 + LABEL_WIDTH)
    wrapper = TextWrapper(
        width=WIDTH,
        initial_indent=f"  {label:<{LABEL_WIDTH}}",
        subsequent_indent=indent + " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text) or [f"  {label}".rstrip()]


def _shown(path: str, value: Any) -> str:
    if value is None:
        return "not set"
    if path == "output.webhook_url":  # such addresses often hold a token
        return f"{urlsplit(value).scheme}://{urlsplit(value).hostname}/…"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)
