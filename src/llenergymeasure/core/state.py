"""How far each experiment got, kept on disk beside its results, so that an interrupted run can be told apart.

    INITIALISING ──> MEASURING ──> DONE          `failed` may be set in any of them and keeps the phase

One small JSON file per experiment in `.state/` of the output directory, replaced in one step at every change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llenergymeasure.atomic import naming_the_path, read_plain_file, write_bytes_atomically
from llenergymeasure.core.host.processes import MAX_PID, ProcessIdentity, current_process, is_running
from llenergymeasure.core.progress import Event, Observer, StepFinished, StepStarted
from llenergymeasure.domain.base import Moment
from llenergymeasure.exceptions import InvalidStateTransitionError, PersistenceError
from llenergymeasure.security import sanitize_experiment_id

logger = logging.getLogger(__name__)

STATE_DIR_NAME: Final = ".state"
"""Directory of the state files, inside the output directory."""

_SUFFIX: Final = ".state.json"


class ExperimentPhase(str, Enum):
    """What an experiment is busy with."""

    INITIALISING = "initialising"
    MEASURING = "measuring"
    DONE = "done"


_NEXT: Final = {
    ExperimentPhase.INITIALISING: ExperimentPhase.MEASURING,
    ExperimentPhase.MEASURING: ExperimentPhase.DONE,
}


_PHASES: Final = {"measure": ExperimentPhase.MEASURING, "finish": ExperimentPhase.DONE}
"""The steps that begin a new phase."""


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class ExperimentState(BaseModel):
    """How far one experiment got."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    experiment_id: str = Field(min_length=1, description="Identity of the experiment.")
    phase: ExperimentPhase = Field(default=ExperimentPhase.INITIALISING, description="The phase it reached.")
    failed: bool = Field(default=False, description="Whether it failed in that phase.")
    config_hash: str | None = Field(default=None, description="`measurement_config_hash` of its config.")
    error_message: str | None = Field(default=None, description="Why it failed.")
    started_at: Moment = Field(default_factory=_utc_now, description="When it was created (UTC).")
    last_updated: Moment = Field(default_factory=_utc_now, description="When it changed last (UTC).")
    subprocess_pid: int | None = Field(default=None, gt=0, le=MAX_PID, description="Process that runs it.")
    process: ProcessIdentity | None = Field(
        default=None, description="What tells that process from a later one with the same number."
    )

    def transition_to(self, phase: ExperimentPhase) -> None:
        """Move on to the next phase.

        Raises:
            InvalidStateTransitionError: `phase` does not follow from this one, or the experiment has failed.
        """
        if self.failed or _NEXT.get(self.phase) != phase:
            came_from = f"{self.phase.value} (failed)" if self.failed else self.phase.value
            raise InvalidStateTransitionError(came_from, ExperimentPhase(phase).value)
        self.phase = phase
        self.last_updated = _utc_now()

    def mark_failed(self, error: str) -> None:
        """Note that the experiment failed; the phase stays, because it tells where."""
        self.failed = True
        self.error_message = error
        self.last_updated = _utc_now()


class StateManager:
    """The states of the experiments of one output directory.

    Args:
        state_dir: Where the files are; made when the first one is written.
    """

    def __init__(self, state_dir: Path, process_runs: Callable[[ProcessIdentity], bool] = is_running) -> None:
        self._state_dir = Path(state_dir)
        self._process_runs = process_runs
        self._told_of: set[Path] = set()

    def create(
        self, experiment_id: str, config_hash: str | None = None, process: ProcessIdentity | None = None
    ) -> ExperimentState:
        """Begin a new experiment, which `process` or else this one will run, and write its state.

        Raises:
            PersistenceError: There is a state of that name already, or it cannot be written.
        """
        path = self._path(experiment_id)
        if _exists(path):
            raise PersistenceError(
                f"{path} exists: an experiment called {experiment_id!r} was begun here. Use another id, or delete it."
            )
        process = process or current_process()
        state = ExperimentState(
            experiment_id=experiment_id, config_hash=config_hash, subprocess_pid=process.pid, process=process
        )
        self.save(state)
        return state

    def load(self, experiment_id: str) -> ExperimentState | None:
        """The state of an experiment; `None` where there is none.

        Raises:
            PersistenceError: The file cannot be read, or is not a state.
        """
        path = self._path(experiment_id)
        return self._read(path) if _exists(path) else None

    def save(self, state: ExperimentState) -> None:
        """Write a state in one step: a reader sees the old one or the new one.

        Raises:
            PersistenceError: It cannot be written.
        """
        with naming_the_path(self._state_dir, "create"):
            self._state_dir.mkdir(parents=True, exist_ok=True)
        content = json.dumps(state.model_dump(mode="json"), indent=2) + "\n"
        write_bytes_atomically(self._path(state.experiment_id), content.encode())

    def delete(self, experiment_id: str) -> bool:
        """Remove the state of an experiment; whether there was one.

        Raises:
            PersistenceError: It cannot be removed.
        """
        path = self._path(experiment_id)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise PersistenceError(f"Cannot delete {path}: {error.strerror or error}.") from error
        return True

    def list_experiments(self) -> list[str]:
        """Identities of all experiments here, oldest first. Damaged files are left out, with a warning."""
        return [state.experiment_id for state in self._states()]

    def find_by_config_hash(self, config_hash: str) -> ExperimentState | None:
        """The latest experiment with this config; `None` where there is none."""
        return next((state for state in reversed(self._states()) if state.config_hash == config_hash), None)

    def cleanup_stale(self) -> list[str]:
        """Mark as failed every experiment that was not done when its process went; their identities.

        Raises:
            PersistenceError: A state cannot be written.
        """
        stale = [state for state in self._states() if self._is_stale(state)]
        for state in stale:
            state.mark_failed(f"process {state.subprocess_pid} ended while {state.phase.value}")
            self.save(state)
        return [state.experiment_id for state in stale]

    def _is_stale(self, state: ExperimentState) -> bool:
        if state.failed or state.phase is ExperimentPhase.DONE:
            return False
        process = state.process
        if process is None and state.subprocess_pid is not None:
            process = ProcessIdentity(pid=state.subprocess_pid)
        return process is None or not self._process_runs(process)

    def _states(self) -> list[ExperimentState]:
        states = []
        for path in self._state_dir.glob(f"*{_SUFFIX}"):
            try:
                states.append(self._read(path))
            except PersistenceError as error:
                if path not in self._told_of:
                    logger.warning("Ignored: %s", error)
                self._told_of.add(path)
        return sorted(states, key=lambda state: (state.started_at, state.experiment_id))

    def _path(self, experiment_id: str) -> Path:
        return self._state_dir / f"{sanitize_experiment_id(experiment_id)}{_SUFFIX}"

    def _read(self, path: Path) -> ExperimentState:
        try:
            state = ExperimentState.model_validate_json(read_plain_file(path, follow_links=False))
        except OSError as error:
            raise PersistenceError(f"Cannot read {path}: {error.strerror or error}.") from error
        except ValidationError as error:
            problem = error.errors()[0]
            raise _damaged(path, f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}") from error
        if path != self._path(state.experiment_id):
            raise _damaged(path, f"it tells of another experiment, {state.experiment_id!r}")
        return state


@contextmanager
def tracked(output_dir: Path | None, experiment_id: str, config_hash: str, observer: Observer) -> Iterator[Observer]:
    """Keep the experiment's state on disk while the block runs it, with the observer yielded, and saves its result.

    The state appears when pre-flight has passed, becomes `MEASURING` right before the window and `DONE` after it. It is
    removed when the block ends well: from then on the saved result speaks for itself. An experiment that fails or is
    interrupted leaves its state, marked as failed. Once the state exists, a disk that runs full costs it, and never the
    experiment.

    Args:
        output_dir: Where the result will go; `None`: nothing is written.

    Raises:
        PersistenceError: The state cannot be created, so a result could not be saved either.
    """
    if output_dir is None:
        yield observer
        return
    state_dir = output_dir / STATE_DIR_NAME
    manager = StateManager(state_dir)
    state: ExperimentState | None = None

    def follow(event: Event) -> None:
        nonlocal state
        if isinstance(event, StepFinished) and event.step == "preflight":
            _tell_of_others(manager, config_hash)
            try:
                state = manager.create(experiment_id, config_hash)
            except PersistenceError:
                _remove_if_empty(state_dir)
                raise
        elif state is not None and isinstance(event, StepStarted) and event.step in _PHASES:
            state.transition_to(_PHASES[event.step])
            with _never_fatal():
                manager.save(state)
        observer(event)

    try:
        yield follow
    except BaseException as error:
        if state is not None:
            state.mark_failed(str(error) or type(error).__name__)
            with _never_fatal():
                manager.save(state)
        raise
    if state is not None:
        with _never_fatal():
            manager.delete(experiment_id)
        _remove_if_empty(state_dir)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a directory on the way that may not be searched
        raise PersistenceError(f"Cannot read {path}: {error.strerror or error}.") from error


def _damaged(path: Path, problem: str) -> PersistenceError:
    return PersistenceError(f"{path} is damaged ({problem}). Delete it; the experiment's results are not in it.")


@contextmanager
def _never_fatal() -> Iterator[None]:
    try:
        yield
    except PersistenceError as error:
        logger.warning("The state of the experiment on disk is out of date: %s", error)


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # other experiments' states may still be in it
        directory.rmdir()


def _tell_of_others(manager: StateManager, config_hash: str) -> None:
    """Tell of runs here that were cut off, and of one that is measuring the same at this moment."""
    for experiment_id in manager.cleanup_stale():
        logger.warning("An earlier run, %s, was cut off before it was done; it left no result.", experiment_id)
    latest = manager.find_by_config_hash(config_hash)
    if latest is not None and not latest.failed and latest.phase is not ExperimentPhase.DONE:
        logger.warning(
            "Process %s is running the same configuration (%s); two at once disturb each other's figures.",
            latest.subprocess_pid,
            latest.experiment_id,
        )
