"""Keeps the state of a running experiment beside its results, so that an interrupted run can be told apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llenergymeasure.core.progress import Event, Observer, StepFinished, StepStarted
from llenergymeasure.core.state import STATE_DIR_NAME, ExperimentPhase, ExperimentState, StateManager
from llenergymeasure.exceptions import PersistenceError

_log = logging.getLogger(__name__)


@contextmanager
def tracked(output_dir: Path | None, experiment_id: str, config_hash: str, observer: Observer) -> Iterator[Observer]:
    """Keep the experiment's state on disk while the block runs and saves its result.

    The state appears when pre-flight has passed, becomes `MEASURING` right before the window and `DONE` after it. It is
    removed when the block ends well: from then on the saved result speaks for itself. An experiment that fails or is
    interrupted leaves its state, marked as failed. Once the state exists, a disk that runs full costs it, and never the
    experiment.

    Args:
        output_dir: Where the result will go; `None`: nothing is written.
        experiment_id: Identity of the experiment.
        config_hash: Its `measurement_config_hash`.
        observer: Who else is told what happens.

    Yields:
        The observer to run the experiment with.

    Raises:
        PersistenceError: The state cannot be created, so a result could not be saved either.
    """
    if output_dir is None:
        yield observer
        return
    manager = StateManager(output_dir / STATE_DIR_NAME)
    state: ExperimentState | None = None

    def follow(event: Event) -> None:
        nonlocal state
        if isinstance(event, StepFinished) and event.step == "preflight":
            _tell_interrupted(manager)
            try:
                state = manager.create(experiment_id, config_hash)
            except PersistenceError:
                _remove_if_empty(output_dir / STATE_DIR_NAME)
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
        _remove_if_empty(output_dir / STATE_DIR_NAME)


_PHASES = {"measure": ExperimentPhase.MEASURING, "finish": ExperimentPhase.DONE}
"""The steps that begin a new phase."""


@contextmanager
def _never_fatal() -> Iterator[None]:
    try:
        yield
    except PersistenceError as error:
        _log.warning("The state of the experiment on disk is out of date: %s", error)


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # other experiments' states may still be in it
        directory.rmdir()


def _tell_interrupted(manager: StateManager) -> None:
    for experiment_id in manager.cleanup_stale():
        _log.warning("An earlier run, %s, was interrupted while measuring; it left no result.", experiment_id)
