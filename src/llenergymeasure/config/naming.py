"""Short names of experiments, for people."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.config.ssot import BATCH_SIZE_FIELD

if TYPE_CHECKING:
    from llenergymeasure.config.models import ExperimentConfig

_IN_EVERY_TITLE: Final = frozenset({"backend", "precision", *BATCH_SIZE_FIELD.values()})
"""Fields that `experiment_title` shows, however they are set."""


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


def study_titles(experiments: Sequence[ExperimentConfig]) -> list[str]:
    """One line per experiment of a study: its title, then the other fields in which the study's experiments differ.

    `qwen2.5-0.5b / pytorch / bf16 / batch 8 / decoder.temperature=0.5`. A field of one backend is compared among the
    experiments of that backend. A field that is not set is left out: its neighbours show theirs.

    Args:
        experiments: The study's experiments.
    """
    flat = [dict(_flat(config.model_dump(mode="json", exclude_none=True))) for config in experiments]
    shown = _IN_EVERY_TITLE | (set() if _short_names_differ(experiments) else {"model"})
    varying = {backend: sorted(_varying(flat, backend) - shown) for backend in {c.backend for c in experiments}}
    return [
        " / ".join(
            [experiment_title(config), *(f"{key}={fields[key]}" for key in varying[config.backend] if key in fields)]
        )
        for config, fields in zip(experiments, flat, strict=True)
    ]


def _short_names_differ(experiments: Sequence[ExperimentConfig]) -> bool:
    """Whether two of the models have the same short name."""
    models = {config.model for config in experiments}
    return len({model_short_name(model) for model in models}) < len(models)


def _varying(flat: Sequence[dict[str, str]], backend: str) -> set[str]:
    """The fields that tell experiments of `backend` from others: its own ones, and those of all backends."""
    values: dict[str, set[str | None]] = defaultdict(set)
    keys = {key for fields in flat for key in fields}
    for key in keys:
        section = key.partition(".")[0]
        values[key].update(f.get(key) for f in flat if section not in BATCH_SIZE_FIELD or f["backend"] == backend)
    return {key for key, found in values.items() if len(found) > 1}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every field by its dotted path, its value as YAML would have it."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)
