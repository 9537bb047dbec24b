"""Short names of experiments, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llenergymeasure.config.ssot import BATCH_SIZE_FIELD

if TYPE_CHECKING:
    from llenergymeasure.config.models import ExperimentConfig


def model_short_name(model: str) -> str:
    """The last part of a model ID or path, in lower case: `Qwen/Qwen2.5-0.5B` becomes `qwen2.5-0.5b`."""
    return model.rstrip("/").rsplit("/", 1)[-1].lower() or model


def experiment_title(config: ExperimentConfig) -> str:
    """One line that tells an experiment from its neighbours: `qwen2.5-0.5b / pytorch / bf16 / batch 8`."""
    parts = [model_short_name(config.model), config.backend, config.precision]
    section = getattr(config, config.backend)
    batch = getattr(section, BATCH_SIZE_FIELD[config.backend].split(".")[1], None) if section is not None else None
    if batch is not None:
        parts.append(f"batch {batch}")
    return " / ".join(parts)
