"""The result of a study and its checkpoint. Results of experiments are paths here, never embedded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PrivateAttr

from llenergymeasure.constants import RESULT_SCHEMA_VERSION, VERSION
from llenergymeasure.domain.base import JsonDict, Moment, Printed, Record, SchemaVersion, empty, optional
from llenergymeasure.exceptions import PersistenceError

if TYPE_CHECKING:
    from llenergymeasure.domain.experiment import ExperimentResult

StudyStatus = Literal["running", "completed", "interrupted", "failed"]
EntryStatus = Literal["pending", "running", "completed", "failed"]
IntervalMethod = Literal["student_t", "normal", "bootstrap"]


class StudySummary(Record):
    """Counts and totals of a study."""

    total_experiments: int = Field(ge=0, description="Runs planned: configurations x cycles.")
    completed: int = Field(default=0, ge=0, description="Runs with a result.")
    failed: int = Field(default=0, ge=0, description="Runs that ended without a result.")
    skipped: int = Field(default=0, ge=0, description="Configurations that could not be valid.")
    total_wall_time_s: float = Field(default=0.0, ge=0, description="Seconds for which the study ran, pauses left out.")
    total_energy_j: float | None = optional("Raw energy of all measurement windows, in joules; null: measured in none.")


class MeasurementProtocol(Record):
    """How often and in what order a study measured."""

    n_cycles: int = Field(default=1, ge=1, description="Repetitions of each configuration.")
    cycle_order: str = Field(default="sequential", description="`sequential`, `interleaved` or `shuffled`.")
    config_gap_seconds: float | None = optional("Wait between runs, in seconds.", ge=0)
    cycle_gap_seconds: float | None = optional("Wait between cycles, in seconds.", ge=0)
    shuffle_seed: int | None = optional("Seed of the shuffled order.")


class SkippedExperiment(Record):
    """A configuration of a sweep that could not be valid."""

    config: JsonDict = Field(description="The configuration as written.")
    reason: str = Field(description="Why it cannot be measured.")


class FailedExperiment(Record):
    """A run that ended without a result."""

    config: JsonDict = Field(description="The resolved configuration.")
    reason: str = Field(description="What happened.")
    config_name: str | None = optional("Short name of the configuration, for people.")
    cycle: int | None = optional("Which repetition, from 1.", ge=1)
    error_type: str | None = optional("Class of the error.")


class CycleStatistics(Record):
    """One figure over the cycles of a configuration, in the unit that the field holding it names."""

    count: int = Field(ge=1, description="Cycles with a value.")
    mean: float = Field(description="Arithmetic mean.")
    std: float | None = optional("Sample standard deviation (n - 1); null below two cycles.")
    ci95_low: float | None = optional("Lower end of the 95 % interval of the mean.")
    ci95_high: float | None = optional("Upper end of the 95 % interval of the mean.")
    ci95_method: IntervalMethod | None = optional("How the interval was found.")
    cv_pct: float | None = optional("Coefficient of variation in per cent; null below two cycles or for a mean of 0.")
    high_variation: bool = Field(default=False, description="Whether the coefficient of variation exceeds 5 %.")


class ConfigurationStatistics(Record):
    """One configuration of a study over its cycles."""

    measurement_config_hash: str = Field(description="Hash of the configuration.")
    config_name: str | None = optional("Short name of the configuration, for people.")
    model_name: str | None = optional("Model as configured.")
    backend: str = Field(description="Inference engine.")
    hardware: str | None = optional(
        "Kind of hardware that these runs were on; null where all runs of the configuration were on one kind."
    )
    cycles: int = Field(ge=1, description="Runs with a result.")
    estimated: bool = Field(
        default=False, description="Whether the joules come from a model of the machine, not from a sensor."
    )
    energy_per_token_j: CycleStatistics | None = optional("Raw joules per output token; null: not measured.")
    tokens_per_second: CycleStatistics | None = optional("Output tokens per second.")
    ttft_ms: CycleStatistics | None = optional("Mean time to first token of each run, in ms; null: not told.")
    energy_vs_best: float | None = optional(
        "Mean of `energy_per_token_j` over that of the best configuration, estimates among themselves; 1 for the best."
    )
    speed_vs_best: float | None = optional(
        "Mean of `tokens_per_second` over that of the fastest configuration; 1 for the fastest."
    )
    warnings: dict[str, int] = empty(dict, "Code of each warning, and in how many of the runs it was given.")


def count_warnings(statistics: Iterable[ConfigurationStatistics]) -> dict[str, int]:
    """Code of each warning, and in how many runs it was given; the commonest first."""
    runs: Counter[str] = Counter()
    for entry in statistics:
        runs.update(entry.warnings)
    return dict(runs.most_common())


@dataclass(frozen=True)
class _Place:
    """Where a study is kept, which is no part of what it holds: two that differ in this alone are equal."""

    directory: Path | None = field(default=None, compare=False)


class StudyResult(Printed):
    """What a study yielded."""

    schema_version: SchemaVersion = RESULT_SCHEMA_VERSION
    study_id: str = Field(description="Identity of this execution of the study.")
    name: str | None = optional("Name of the study.")
    study_design_hash: str | None = optional("First 16 hex digits of SHA-256 over the resolved experiments.")
    started_at: Moment = Field(description="When the study began (UTC).")
    completed_at: Moment | None = optional("When it ended (UTC); null: it did not.")
    measurement_protocol: MeasurementProtocol = empty(MeasurementProtocol, "Cycles, order, gaps and seed.")
    summary: StudySummary = Field(description="Counts and totals.")
    skipped: list[SkippedExperiment] = empty(list, "Configurations left out.")
    failed: list[FailedExperiment] = empty(list, "Runs without a result.")
    result_files: list[str] = empty(list, "Results, as paths relative to the study directory.")
    statistics: list[ConfigurationStatistics] = empty(list, "Each configuration over its cycles.")

    _place: _Place = PrivateAttr(default_factory=_Place)

    def kept_in(self, directory: Path) -> StudyResult:
        """The same study, which knows that it is kept in `directory`."""
        kept = self.model_copy()
        kept._place = _Place(directory.absolute())
        return kept

    @property
    def path(self) -> Path | None:
        """Directory the study is kept in; `None` where it is not known."""
        return self._place.directory

    def results(self) -> list[ExperimentResult]:
        """Every result of the study, read from its directory.

        Raises:
            PersistenceError: A file cannot be read, or the directory is not known; names it.
        """
        from llenergymeasure.domain.experiment import ExperimentResult

        if self.path is None:
            raise PersistenceError("This study does not know its directory; read it from there with load_study.")
        return [ExperimentResult.from_json(self.path / file) for file in self.result_files]

    @property
    def estimated(self) -> bool:
        """Whether any of its joules come from a model of the machine, not from a sensor."""
        return any(entry.estimated for entry in self.statistics)

    @property
    def warnings(self) -> dict[str, int]:
        """Code of each warning, and in how many runs it was given; the commonest first."""
        return count_warnings(self.statistics)

    def headline(self) -> str:
        """The study in one line."""
        done = self.summary.completed, self.summary.total_experiments
        parts = [f"{done[0]} of {done[1]} runs completed"]
        parts += [f"{count} {what}" for what in ("failed", "skipped") if (count := getattr(self.summary, what))]
        return f"{self.name or self.study_id}: {', '.join(parts)}" + ("" if self.path is None else f" in {self.path}")


class ExperimentManifestEntry(Record):
    """One run of a study: an experiment in a cycle."""

    config_hash: str = Field(description="measurement_config_hash of the experiment.")
    config_summary: str = Field(description="The configuration in a few words, for people.")
    cycle: int = Field(ge=1, description="Which repetition, from 1.")
    status: EntryStatus = Field(default="pending", description="Where this run is.")
    result_file: str | None = optional("Result, relative to the study directory.")
    error_type: str | None = optional("Class of the error that ended it.")
    error_message: str | None = optional("What happened.")
    started_at: Moment | None = optional("When it began (UTC).")
    completed_at: Moment | None = optional("When it ended (UTC).")
    dataset_sha256: str | None = optional("SHA-256 of the prompts it used.")


class StudyManifest(Record):
    """Checkpoint of a study: enough to resume it, not its result."""

    schema_version: SchemaVersion = RESULT_SCHEMA_VERSION
    study_name: str = Field(description="Name of the study.")
    study_design_hash: str = Field(description="First 16 hex digits of SHA-256 over the resolved experiments.")
    llenergymeasure_version: str = Field(default=VERSION, description="Version that wrote this.")
    started_at: Moment = Field(description="When the study began (UTC).")
    completed_at: Moment | None = optional("When it ended (UTC).")
    ran_s: float = Field(
        default=0.0, ge=0, description="Seconds for which it has run, in all its executions, as of this writing."
    )
    status: StudyStatus = Field(default="running", description="Where the study is.")
    total_experiments: int = Field(ge=0, description="Runs planned.")
    completed: int = Field(default=0, ge=0, description="Runs with a result.")
    failed: int = Field(default=0, ge=0, description="Runs that failed.")
    pending: int = Field(ge=0, description="Runs still to be done.")
    experiments: list[ExperimentManifestEntry] = empty(list, "Every run, in order of execution.")
    study: JsonDict = empty(dict, "The resolved study (experiments and execution), enough to resume from.")
