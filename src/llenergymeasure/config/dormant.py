"""Settings that somebody wrote and that do nothing, because the switch above them is off.

They are not refused: switching warm-up off for a trial should not mean deleting the rest of its section. They are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llenergymeasure.config.sections import BaselineConfig, WarmupConfig

if TYPE_CHECKING:
    from llenergymeasure.config.base import ConfigModel
    from llenergymeasure.config.models import ExperimentConfig


def dormant_settings(config: ExperimentConfig) -> list[str]:
    """Every setting that is not at its default and has no effect, with the switch that would give it one.

    Args:
        config: A valid experiment.
    """
    return [f"{path} is set and has no effect while {switch}" for path, switch in _dormant(config)]


def _dormant(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    warmup, baseline = config.warmup, config.baseline
    if not warmup.enabled:
        yield from _changed("warmup", warmup, set(WarmupConfig.model_fields) - {"enabled"}, "warmup.enabled is false")
    elif not warmup.convergence_detection:
        switch = "warmup.convergence_detection is false"
        yield from _changed("warmup", warmup, {"cv_threshold", "max_prompts", "window_size", "min_prompts"}, switch)
    durations = set(BaselineConfig.model_fields) - {"enabled"}
    if not baseline.enabled:
        yield from _changed("baseline", baseline, durations, "baseline.enabled is false")
    elif config.energy.backend is None:
        yield from _changed("baseline", baseline, durations, "energy.backend is null")


def _changed(section: str, model: ConfigModel, names: set[str], switch: str) -> Iterator[tuple[str, str]]:
    for name, field in type(model).model_fields.items():
        if name in names and getattr(model, name) != field.default:
            yield f"{section}.{name}", switch
