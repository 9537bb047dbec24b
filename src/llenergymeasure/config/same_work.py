"""Which experiments do the same work, however they are written, and whether a batch is left part empty."""

from __future__ import annotations

import json

from llenergymeasure.config.models import ExperimentConfig, SyntheticDatasetConfig, without_effect
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
