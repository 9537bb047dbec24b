"""What a study runs, run by run: which experiment, in which cycle, in which order."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from llenergymeasure.config.grid import apply_cycles, compute_study_design_hash
from llenergymeasure.config.models import ExperimentConfig, StudyConfig, study_titles
from llenergymeasure.domain.experiment import compute_measurement_config_hash

RunKey = tuple[str, int]
"""Identity of a run within a study: `measurement_config_hash` and cycle."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One experiment in one cycle.

    Args:
        position: Place in the order of execution, from 1.
        config: The experiment.
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
    """Every run of a study in order of execution.

    Args:
        study: The study; an experiment that is in it twice is run once, and said so.
    """
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
