"""The runners there are, by name, and how each job finds its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.registry import DeviceChoice, device_choice
from llenergymeasure.core.progress import Observer
from llenergymeasure.runners.docker import DOCKER_RUNNER, DockerLauncher
from llenergymeasure.runners.isolated import Launcher, ProcessLauncher, asked_in_groups
from llenergymeasure.runners.job import LOCAL_RUNNER, Job, MeasuredRun
from llenergymeasure.runners.supervise import Interrupt

LAUNCHERS: Final[Mapping[str, Callable[[], Launcher]]] = {
    LOCAL_RUNNER: ProcessLauncher,
    DOCKER_RUNNER: DockerLauncher,
}
"""Who runs jobs, by what stands before the colon where the user's settings name a runner."""


def runs_here(machine: UserConfig, backend: str) -> bool:
    """Whether the settings have a backend's experiments run in this machine's own Python environment.

    A runner that this release does not have counts as that: the experiment's own pre-flight refuses it.
    """
    return _kind(machine, backend, LAUNCHERS) == LOCAL_RUNNER


def device_choice_of(config: ExperimentConfig, machine: UserConfig) -> DeviceChoice | None:
    """Where the engine was told to run, or has to; `None` requires a GPU. What build an image has is not known."""
    return device_choice(config) if runs_here(machine, config.backend) else config.backend_config.device_choice


class ChosenLauncher:
    """Hands each job to the runner that the user's settings name for its backend.

    One that this release does not have is a child process, whose pre-flight says so.
    """

    def __init__(self, launchers: Mapping[str, Callable[[], Launcher]] = LAUNCHERS) -> None:
        self._launchers = {name: make() for name, make in launchers.items()}

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        """What each experiment would fail for where its job would run; see `Launcher.failures`."""

        def ask(alike: list[ExperimentConfig]) -> list[list[str]]:
            return self._of(machine, alike[0].backend).failures(alike, machine)

        return asked_in_groups(configs, lambda config: _kind(machine, config.backend, self._launchers), ask)

    def prepare(self, job: Job) -> None:
        """Let the job's runner get ready for it."""
        self._of(job.machine, job.config.backend).prepare(job)

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Let the job's runner run it; see `Launcher.run`."""
        return self._of(job.machine, job.config.backend).run(job, observer, interrupt)

    def discard(self) -> None:
        """End what was prepared and will not come."""
        for launcher in self._launchers.values():
            launcher.discard()

    def _of(self, machine: UserConfig, backend: str) -> Launcher:
        return self._launchers[_kind(machine, backend, self._launchers)]


def _kind(machine: UserConfig, backend: str, known: Mapping[str, object]) -> str:
    named = machine.runners.of(backend).partition(":")[0]
    return named if named in known else LOCAL_RUNNER
