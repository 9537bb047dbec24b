"""Which experiments do the same work, however they are written; which settings change nothing; batches part empty."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

from llenergymeasure.config.models import ExperimentConfig, SyntheticDatasetConfig, WarmupConfig
from llenergymeasure.config.ssot import BATCH_SIZE_FIELD, CONTINUOUS_BATCHING

_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p")


def same_work_key(config: ExperimentConfig) -> str:
    """Text that is equal for experiments that do the same work.

    `pytorch: {}` is no section, `batch_size: 1` is what `null` means, a batch holds no more prompts than there are, and
    what has no effect does not count. It is finer than a hash of the config only where that leaves out a `None`.
    """
    data = config.model_dump(mode="json", exclude={"output_dir"})
    data[config.backend] = config.backend_config.resolved(config.n)
    decoder = data["decoder"]
    del decoder["preset"]
    if config.decoder.is_deterministic:
        decoder.update(dict.fromkeys(_SAMPLING))
    for path in without_effect(config):
        section, name = path.split(".")
        del data[section][name]
    if isinstance(config.dataset, SyntheticDatasetConfig):
        del data["dataset"]["n"]  # the pool's size does not change what is taken from it
    data["passthrough_kwargs"] = config.passthrough_kwargs or None
    return json.dumps(data, sort_keys=True)


def partial_batch(config: ExperimentConfig) -> str | None:
    """That the prompts do not fill their last batch, with a number that would; `None`: they do, or nobody can tell.

    A batch that is part empty costs more per token than a full one, and a compiled model meets a new shape in it.
    """
    if config.backend not in BATCH_SIZE_FIELD or config.backend in CONTINUOUS_BATCHING:
        return None
    batch, processes = config.backend_config.batch, config.backend_config.processes
    step = batch * processes
    if batch == 1 or config.n % step == 0:
        return None
    on_each = "" if processes == 1 else f" on each of {processes} processes"
    told = f"n = {config.n} leaves the last batch of {batch}{on_each} part empty, which raises the cost of a token."
    if config.n > step:
        return f"{told} Set n to {config.n // step * step}."
    pool = " and dataset.n" if isinstance(config.dataset, SyntheticDatasetConfig) and config.dataset.n < step else ""
    fitting = config.n // processes if config.n % processes == 0 else 1
    return f"{told} Set n{pool} to {step}, or {BATCH_SIZE_FIELD[config.backend]} to {fitting}."


def ineffective_settings(config: ExperimentConfig) -> list[str]:
    """Every setting that is not at its default and has no effect, with the switch that would give it one."""
    return [
        f"{path} is set and has no effect while {switch}"
        for path, switch in without_effect(config).items()
        if attrgetter(path)(config) != _default_of(config, path)
    ]


def without_effect(config: ExperimentConfig) -> dict[str, str]:
    """Every setting that changes nothing, by path, with the switch that would give it an effect."""
    changeable = tuple(name for name in WarmupConfig.model_fields if name != "enabled")
    settling = ("cv_threshold", "max_prompts", "window_size", "min_prompts")
    effects = (
        (not config.warmup.enabled, "warmup", changeable, "warmup.enabled is false"),
        (not config.warmup.convergence_detection, "warmup", settling, "warmup.convergence_detection is false"),
        (not config.baseline.enabled, "baseline", ("duration_seconds",), "baseline.enabled is false"),
        (config.energy.backend is None, "baseline", ("duration_seconds",), "energy.backend is null"),
    )
    found: dict[str, str] = {}
    for is_off, section, names, switch in effects:
        for name in names if is_off else ():
            found.setdefault(f"{section}.{name}", switch)
    return found


def _default_of(config: ExperimentConfig, path: str) -> Any:
    section, name = path.split(".")
    return type(getattr(config, section)).model_fields[name].default
