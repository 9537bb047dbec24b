"""What a study runs, run by run: which experiment, in which cycle, in which order, and for how long at most."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Final

from llenergymeasure.config.grid import apply_cycles, compute_study_design_hash
from llenergymeasure.config.models import ExperimentConfig, StudyConfig, study_titles
from llenergymeasure.core.model.parameters import count_from_name
from llenergymeasure.domain.experiment import compute_measurement_config_hash

RunKey = tuple[str, int]
"""Identity of a run within a study: `measurement_config_hash` and cycle."""

BASE_S: Final = 3600.0
"""Time limit for downloading, loading, compiling, and building an engine, in seconds."""

SLOWEST_S_PER_TOKEN: Final = 0.05
"""Time per output token that no working GPU exceeds for a model of 1e9 parameters, at batch 1, in seconds."""

SLOWEST_CPU_S_PER_TOKEN: Final = 1.0
"""Likewise on a CPU."""

UNKNOWN_SIZE: Final = 10e9
"""Parameters assumed for a model whose name does not tell."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One experiment in one cycle.

    Args:
        position: Place in the order of execution, from 1.
        config_hash: Its `measurement_config_hash`.
        cycle: Which repetition, from 1.
        title: The configuration in a few words, which tell it from the others of its study.
    """

    position: int
    config: ExperimentConfig
    config_hash: str
    cycle: int
    title: str

    @property
    def key(self) -> RunKey:
        """Identity of this run within its study."""
        return self.config_hash, self.cycle


def plan_runs(study: StudyConfig) -> tuple[PlannedRun, ...]:
    """Every run of a study in order of execution; an experiment that is in it twice is run once, and said so."""
    unique = {compute_measurement_config_hash(config): config for config in reversed(study.experiments)}
    hashes = {id(config): config_hash for config_hash, config in unique.items()}
    configs = list(reversed(unique.values()))
    if len(configs) < len(study.experiments):
        _log.warning(
            "%d of %d experiments repeat an earlier one and run once",
            len(study.experiments) - len(configs),
            len(study.experiments),
        )
    titles = {hashes[id(config)]: title for config, title in zip(configs, study_titles(configs), strict=True)}
    execution = study.execution
    order = apply_cycles(
        configs, execution.n_cycles, execution.cycle_order, design_hash_of(study), execution.shuffle_seed
    )
    cycles: Counter[str] = Counter()
    runs = []
    for position, config in enumerate(order, start=1):
        config_hash = hashes[id(config)]
        cycles[config_hash] += 1
        runs.append(PlannedRun(position, config, config_hash, cycles[config_hash], titles[config_hash]))
    return tuple(runs)


def design_hash_of(study: StudyConfig) -> str:
    """The study's design hash, computed where the study was made without one."""
    return study.study_design_hash or compute_study_design_hash(study.experiments)


def timeout_s(config: ExperimentConfig) -> float:
    """How long an experiment may take before it counts as hung, in seconds.

    Several times what the slowest machine that works at all would need, by its number of prompts, its lengths, its
    waits and the size in its model's name.
    """
    billions = max(1.0, (count_from_name(config.model).params or UNKNOWN_SIZE) / 1e9)
    on_cpu = config.backend_config.device_choice in ("cpu", "auto")
    per_token_s = SLOWEST_CPU_S_PER_TOKEN if on_cpu else SLOWEST_S_PER_TOKEN
    warmup_prompts = max(config.warmup.n_warmup, config.warmup.max_prompts)
    generation_s = (config.n + warmup_prompts) * config.max_output_tokens * per_token_s * billions
    waits_s = config.baseline.duration_seconds + config.warmup.thermal_floor_seconds
    return BASE_S + waits_s + max(generation_s, 2 * (config.measurement.min_duration_seconds or 0.0))
