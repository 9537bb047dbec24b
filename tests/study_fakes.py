"""Studies without engines: results out of thin air, and a launcher that does as a script says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes import VirtualClock
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import Observer, StepStarted
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import ExperimentResult, compute_measurement_config_hash
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.supervise import Interrupt, RunInterruptedError
from llenergymeasure.study.plan import StudyEvent
from llenergymeasure.study.runner import StudyHost, StudyRunner
from result_samples import make_result

ENVIRONMENT = EnvironmentSnapshot(
    python_version="3.11.7",
    tool_version="2.0.0",
    platform="Linux",
    gpu_names=["A100"],
    cuda_driver_version="535.104",
    pip_freeze=["torch==2.13.0", "transformers==5.23.0"],
)


def study_of(*models: str, cycles: int = 1, name: str = "demo", **execution: Any) -> StudyConfig:
    return StudyConfig(
        experiments=[ExperimentConfig(model=model) for model in models],
        name=name,
        execution=ExecutionConfig(
            n_cycles=cycles, **{"config_gap_seconds": 0.0, "cycle_gap_seconds": 0.0, **execution}
        ),
    )


def result_of(config: ExperimentConfig, **changes: Any) -> ExperimentResult:
    fields: dict[str, Any] = {
        "measurement_config_hash": compute_measurement_config_hash(config),
        "model_name": config.model,
        "backend": config.backend,
        "environment_snapshot": ENVIRONMENT,
    }
    return make_result(**{**fields, **changes})


Act = Callable[[Job], ExperimentResult]
"""What the scripted launcher does with a job: a result, or an exception."""


@dataclass
class ScriptedLauncher:
    """A launcher without processes.

    Args:
        act: Called for each job.
        clock: Moves on by `duration_s` per job.
        duration_s: How long each job takes.
    """

    clock: VirtualClock
    act: Act = field(default=lambda job: result_of(job.config))
    duration_s: float = 10.0
    jobs: list[Job] = field(default_factory=list)
    prepared: list[tuple[float, Job]] = field(default_factory=list)
    discarded: int = 0

    def prepare(self, job: Job) -> None:
        self.prepared.append((self.clock.now(), job))

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        self.jobs.append(job)
        observer(StepStarted("preflight"))
        (job.work_dir / "child.log").write_text(f"log of {job.config.model}\n")
        self.clock.sleep(self.duration_s)
        return MeasuredRun(self.act(job), Artefacts(), job.baselines)

    def discard(self) -> None:
        self.discarded += 1


@dataclass
class Stage:
    """A study runner on a virtual clock, and everything it said."""

    directory: Path
    clock: VirtualClock = field(default_factory=VirtualClock)
    events: list[StudyEvent] = field(default_factory=list)
    interrupt: Interrupt = field(default_factory=Interrupt)
    leftovers: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.launcher = ScriptedLauncher(self.clock)

    def host(self, **changes: Any) -> StudyHost:
        fields: dict[str, Any] = {
            "launcher": self.launcher,
            "clock": self.clock,
            "observer": self.events.append,
            "interrupt": self.interrupt,
            "leftovers": lambda: self.leftovers,
        }
        return StudyHost(**{**fields, **changes})

    def runner(self, study: StudyConfig, machine: UserConfig | None = None, **changes: Any) -> StudyRunner:
        return StudyRunner(study, self.directory, machine or UserConfig(), self.host(**changes))

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def interrupt_in(self, model: str) -> None:
        """Have the user ask to stop while an experiment of `model` runs."""

        def act(job: Job) -> ExperimentResult:
            if job.config.model == model:
                self.interrupt.request()
                raise RunInterruptedError("interrupted")
            return result_of(job.config)

        self.launcher.act = act
