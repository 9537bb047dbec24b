"""What a study runs, run by run and for how long at most, and what it tells the world as it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from llenergymeasure.config.grid import apply_cycles, compute_study_design_hash
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig, study_titles
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.model.parameters import count_from_name
from llenergymeasure.core.progress import Event
from llenergymeasure.domain.experiment import ExperimentResult, compute_measurement_config_hash
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.results.study_table import differing_parts
from llenergymeasure.runners.launchers import device_choice_of

RunKey = tuple[str, int]
"""Identity of a run within a study: `measurement_config_hash` and cycle."""

BASE_S: Final = 3600.0
"""Time limit for downloading, loading, compiling, and building an engine, in seconds."""

SILENT_S: Final = 1800.0
"""Time without any sign in which a model is loaded or compiled, in seconds."""

SLOWEST_S_PER_TOKEN: Final = 0.05
"""Time per output token that no working GPU exceeds for a model of 1e9 parameters, at batch 1, in seconds."""

SLOWEST_CPU_S_PER_TOKEN: Final = 1.0
"""Likewise on a CPU."""

UNKNOWN_SIZE: Final = 10e9
"""Parameters assumed for a model whose name does not tell."""


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


def shared_parts(titles: Sequence[str]) -> str:
    """The parts `a / b` that all titles have; nothing where they leave nothing else, as with a single title."""
    if not titles:
        return ""
    differing = differing_parts(titles)[0].split(" / ")
    return " / ".join(part for part in titles[0].split(" / ") if part not in differing)


def plan_runs(study: StudyConfig) -> tuple[PlannedRun, ...]:
    """Every run of a study in order of execution; an experiment that is in it twice is run once."""
    unique = {compute_measurement_config_hash(config): config for config in reversed(study.experiments)}
    hashes = {id(config): config_hash for config_hash, config in unique.items()}
    configs = list(reversed(unique.values()))
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


def notes_on(study: StudyConfig) -> Iterator[str]:
    """What of a study is not what it seems: experiments that are in it twice, settings that change nothing."""
    given, unique = len(study.experiments), len({compute_measurement_config_hash(one) for one in study.experiments})
    if unique < given:
        yield f"{given - unique} of {given} experiments repeat an earlier one and run once"
    execution = study.execution
    if execution.shuffle_seed is not None and execution.cycle_order != "shuffled":
        yield f"execution.shuffle_seed is set and has no effect while execution.cycle_order is {execution.cycle_order}"


def design_hash_of(study: StudyConfig) -> str:
    """The study's design hash, computed where the study was made without one."""
    return study.study_design_hash or compute_study_design_hash(study.experiments)


def known_waits(config: ExperimentConfig) -> Iterator[tuple[str, float]]:
    """The seconds that a run of `config` takes whatever the model and the machine: what for, and how many."""
    if config.baseline.enabled and config.energy.backend is not None:
        yield "baseline", config.baseline.duration_seconds
    if config.warmup.enabled and config.warmup.thermal_floor_seconds:
        yield "thermal floor", config.warmup.thermal_floor_seconds
    if config.measurement.min_duration_seconds:
        yield "window", config.measurement.min_duration_seconds


def timeout_s(config: ExperimentConfig, machine: UserConfig, execution: ExecutionConfig | None = None) -> float:
    """How long an experiment may take before it counts as hung, in seconds.

    Where nobody says, several times what the slowest machine that works at all would need, by its number of prompts,
    its lengths, its waits and the size in its model's name.
    """
    if execution is not None and execution.experiment_timeout_seconds is not None:
        return execution.experiment_timeout_seconds
    warmup_prompts = max(config.warmup.n_warmup, config.warmup.max_prompts)
    generation_s = _slowest_s(config, machine, config.n + warmup_prompts)
    waits_s = config.baseline.duration_seconds + config.warmup.thermal_floor_seconds
    return BASE_S + waits_s + max(generation_s, 2 * (config.measurement.min_duration_seconds or 0.0))


def silence_s(config: ExperimentConfig, machine: UserConfig, execution: ExecutionConfig | None = None) -> float:
    """How long an experiment may give no sign of progress before it counts as hung, in seconds.

    Signs are its events, of which every batch has one, and whatever its engine prints.
    """
    if execution is not None and execution.silence_timeout_seconds is not None:
        return execution.silence_timeout_seconds
    section = config.backend_config
    at_once = config.n if section.fills_memory else min(section.batch, config.n)
    return SILENT_S + _slowest_s(config, machine, at_once)


def _slowest_s(config: ExperimentConfig, machine: UserConfig, prompts: int) -> float:
    """Time for so many prompts, one after the other, on the slowest machine that works at all, in seconds."""
    billions = max(1.0, (count_from_name(config.model).params or UNKNOWN_SIZE) / 1e9)
    on_cpu = device_choice_of(config, machine) in ("cpu", "auto")
    per_token_s = SLOWEST_CPU_S_PER_TOKEN if on_cpu else SLOWEST_S_PER_TOKEN
    return prompts * config.max_output_tokens * per_token_s * billions


GapKind = Literal["config", "cycle"]


@dataclass(frozen=True, slots=True)
class StudyStarted:
    """The study begins, or goes on.

    Args:
        kept: Runs that an earlier execution has completed.
        skipped: Points of the grid that are no valid experiments.
        shared: What the titles of all its runs have in common; see `shared_parts`.
    """

    directory: Path
    total: int
    kept: int
    skipped: int
    shared: str = ""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins; `node`: where in a cluster, `None`: on this machine."""

    run: PlannedRun
    total: int
    node: str | None = None


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run has ended.

    Args:
        result: `None` when it failed.
        error: Why it failed, or why its result could not be saved.
        logs: Where the log of a run that failed is kept; `None` when there is none.
        node: Where in a cluster it was; `None`: on this machine.
    """

    run: PlannedRun
    total: int
    result: ExperimentResult | None
    error: str | None
    duration_s: float
    logs: Path | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class GapStarted:
    """The machine is given time to cool down; `skippable`: Enter ends it."""

    kind: GapKind
    duration_s: float
    skippable: bool


@dataclass(frozen=True, slots=True)
class GapTick:
    """A gap goes on; sent about once a second."""

    kind: GapKind
    remaining_s: float


@dataclass(frozen=True, slots=True)
class GapEnded:
    """A gap is over."""

    kind: GapKind
    skipped: bool


@dataclass(frozen=True, slots=True)
class StudyWarning:
    """Something the user should know now."""

    message: str


@dataclass(frozen=True, slots=True)
class StudyFinished:
    """Everything is on disk."""

    result: StudyResult
    directory: Path


PlaceEvent = GapStarted | GapTick | GapEnded | StudyWarning | Event
"""What happens where runs are run."""


@dataclass(frozen=True, slots=True)
class OnNode:
    """What happens on a node of a cluster, where several experiments run at once."""

    node: str
    event: PlaceEvent


StudyEvent = (
    StudyStarted
    | RunStarted
    | RunFinished
    | GapStarted
    | GapTick
    | GapEnded
    | StudyWarning
    | StudyFinished
    | OnNode
    | Event
)
"""What a study tells, the events of its experiments included."""

StudyObserver = Callable[[StudyEvent], None]
