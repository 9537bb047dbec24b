"""Jobs in isolation, one at a time: what a launcher is, and the one that starts a fresh process for each."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.registry import preload_modules
from llenergymeasure.core.progress import Observer, ignore_events
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import LLEMError, PersistenceError, PreFlightError
from llenergymeasure.runners import inquiry
from llenergymeasure.runners.child import DEFAULT_ENTRY
from llenergymeasure.runners.job import Job, MeasuredRun, run_from_json, write_job
from llenergymeasure.runners.process import ChildTask
from llenergymeasure.runners.supervise import ChildFailedError, ChildGroup, Interrupt, Patience

_log = logging.getLogger(__name__)


class Launcher(Protocol):
    """Runs jobs in isolation, one at a time."""

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        """What each experiment would fail for where its job would run, each with its fix; nothing is measured.

        Raises:
            ChildFailedError: It cannot be found out.
            PersistenceError: There is no room for temporary files.
        """

    def prepare(self, job: Job) -> None:
        """Get ready for `job`, which comes next: imports, say. Returns at once and must not fail."""

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Run `job` to its end.

        Raises:
            PreFlightError: Nothing can be run where it was to run.
            LLEMError: It failed; nothing of it is left running.
            PersistenceError: Its directory cannot be written to.
            RunInterruptedError: `interrupt` was requested; it has been torn down.
        """

    def discard(self) -> None:
        """End what `prepare` started for a job that will not come; safe to call at any time."""


class ProcessLauncher:
    """Runs each job in a fresh child process on this machine; `preload` gives what to import for a backend before."""

    def __init__(
        self,
        entry: str = DEFAULT_ENTRY,
        preload: Callable[[str], tuple[str, ...]] = preload_modules,
        patience: Patience | None = None,
    ) -> None:
        self._entry = entry
        self._preload = preload
        self._patience = patience or Patience()
        self._prepared: tuple[Job, ChildGroup] | None = None
        self._cwd: Path | None = None
        with contextlib.suppress(FileNotFoundError):  # somebody has removed it
            self._cwd = Path.cwd()  # what a config names is meant from here, wherever this process goes

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        """See `Launcher.failures`; a child is asked."""
        backend = configs[0].backend
        try:
            with tempfile.TemporaryDirectory(prefix="llem-") as name:
                directory = Path(name)
                task = self._task(directory, configs, machine, inquiry.ENTRY)
                there = [self._config_there(config) for config in configs]
                inquiry.put_question(there, self._machine_there(machine, backend), directory)
                (found,) = ChildGroup([task], self._patience, inquiry.LIMIT_S).run(ignore_events, Interrupt())
        except OSError as error:
            raise PersistenceError(f"No room for temporary files: {error.strerror or error}.") from error
        answers: list[list[str]] = json.loads(found)
        return answers

    def prepare(self, job: Job) -> None:
        """Start the child for `job` and let it import; call it in the thread that will call `run`."""
        self.discard()
        try:
            group = self._group(job)
            group.start()
        except LLEMError as error:
            _log.warning("Could not start the next experiment's process ahead of time: %s", error)
            return
        self._prepared = job, group

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Run `job` in the child prepared for it, or else in a new one; see `Launcher.run`.

        Raises:
            PreFlightError: It cannot run there; lists every reason.
            ChildFailedError: It raised, crashed or took too long.
            ExperimentError: What it handed back is no result.
        """
        if self._prepared is not None and self._prepared[0] is job:
            group, self._prepared = self._prepared[1], None
        else:
            self.discard()
            group = self._group(job)
        try:
            (result,) = group.run(observer, interrupt)
        except ChildFailedError as error:
            if error.error_type == PreFlightError.__name__:
                raise PreFlightError.from_text(str(error)) from error
            raise
        run = run_from_json(MeasuredRun, result, job.work_dir)
        return replace(run, result=self._told(run.result, job, group.children[0].task))

    def discard(self) -> None:
        """Kill a prepared child, if there is one."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared[1].kill()

    def _group(self, job: Job) -> ChildGroup:
        task = self._task(job.work_dir, [job.config], job.machine, self._entry)
        machine = self._machine_there(job.machine, job.config.backend)
        write_job(replace(job, config=self._config_there(job.config), machine=machine))
        return ChildGroup([task], self._patience, job.timeout_s, job.silence_s)

    def _task(self, directory: Path, configs: Sequence[ExperimentConfig], machine: UserConfig, entry: str) -> ChildTask:
        """The child that has to do with these configurations, of one backend."""
        log_path = directory / "child.log"
        return ChildTask(directory, log_path, self._preload(configs[0].backend), entry=entry, cwd=self._cwd)

    def _config_there(self, config: ExperimentConfig) -> ExperimentConfig:
        """A configuration for a process that is where it is to run."""
        return config

    def _machine_there(self, machine: UserConfig, backend: str) -> UserConfig:
        """The machine's settings for a process that is where they say."""
        return machine

    def _told(self, result: ExperimentResult, job: Job, task: ChildTask) -> ExperimentResult:
        """The result with what only its launcher knows."""
        return result


def asked_in_groups(
    configs: Sequence[ExperimentConfig],
    kind: Callable[[ExperimentConfig], Hashable],
    ask: Callable[[list[ExperimentConfig]], list[list[str]]],
) -> list[list[str]]:
    """What `ask` answers about the configurations of each kind, in the order of all of them."""
    groups: dict[Hashable, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(kind(config), []).append(index)
    answers: dict[int, list[str]] = {}
    for indices in groups.values():
        answers.update(zip(indices, ask([configs[index] for index in indices]), strict=True))
    return [answers[index] for index in range(len(configs))]
