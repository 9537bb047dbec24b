"""How long an experiment may take before it counts as hung."""

from __future__ import annotations

from typing import Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.model.parameters import count_from_name

BASE_S: Final = 3600.0
"""For downloading, loading, compiling, and building an engine, in seconds."""

SLOWEST_S_PER_TOKEN: Final = 0.05
"""Time per output token that no working GPU exceeds for a model of 1e9 parameters, at batch 1, in seconds."""

SLOWEST_CPU_S_PER_TOKEN: Final = 1.0
"""Likewise on a CPU."""

UNKNOWN_SIZE: Final = 10e9
"""Parameters assumed for a model whose name does not tell."""


def timeout_s(config: ExperimentConfig) -> float:
    """A generous limit, in seconds: several times what the slowest machine that works at all would need.

    Args:
        config: The experiment; its number of prompts, its lengths, its waits and the size in its model's name count.
    """
    billions = max(1.0, (count_from_name(config.model).params or UNKNOWN_SIZE) / 1e9)
    on_cpu = config.backend_config.device_choice in ("cpu", "auto")
    per_token_s = SLOWEST_CPU_S_PER_TOKEN if on_cpu else SLOWEST_S_PER_TOKEN
    warmup_prompts = max(config.warmup.n_warmup, config.warmup.max_prompts)
    generation_s = (config.n + warmup_prompts) * config.max_output_tokens * per_token_s * billions
    waits_s = config.baseline.duration_seconds + config.warmup.thermal_floor_seconds
    return BASE_S + waits_s + max(generation_s, 2 * (config.measurement.min_duration_seconds or 0.0))
