"""How far an experiment got: the allowed transitions, the files, and telling a dead process from a living one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.core.host.processes import (
    ProcessIdentity,
    current_process,
    identify_process,
    is_running,
)
from llenergymeasure.core.state import ExperimentPhase, ExperimentState, StateManager
from llenergymeasure.exceptions import InvalidStateTransitionError, PersistenceError
from namespaces import as_somebody

ALLOWED = {
    (ExperimentPhase.INITIALISING, ExperimentPhase.MEASURING),
    (ExperimentPhase.MEASURING, ExperimentPhase.DONE),
}


@pytest.fixture
def manager(tmp_path: Path) -> StateManager:
    return StateManager(tmp_path / ".state")


def finished_process() -> ProcessIdentity:
    """A process that was there and is gone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return identify_process(process.pid)


@pytest.mark.parametrize("from_phase", list(ExperimentPhase))
@pytest.mark.parametrize("to_phase", list(ExperimentPhase))
def test_only_the_next_phase_can_be_entered(from_phase: ExperimentPhase, to_phase: ExperimentPhase) -> None:
    state = ExperimentState(experiment_id="a", phase=from_phase)

    if (from_phase, to_phase) in ALLOWED:
        state.transition_to(to_phase)
        assert state.phase is to_phase
    else:
        with pytest.raises(InvalidStateTransitionError) as caught:
            state.transition_to(to_phase)
        assert (caught.value.from_state, caught.value.to_state) == (from_phase.value, to_phase.value)
        assert state.phase is from_phase


def test_failing_keeps_the_phase_and_tells_why() -> None:
    state = ExperimentState(experiment_id="a", phase=ExperimentPhase.MEASURING)

    state.mark_failed("CUDA out of memory")

    assert state.phase is ExperimentPhase.MEASURING
    assert state.failed
    assert state.error_message == "CUDA out of memory"


def test_a_failed_experiment_does_not_move_on() -> None:
    state = ExperimentState(experiment_id="a")
    state.mark_failed("no GPU")

    with pytest.raises(InvalidStateTransitionError, match=r"initialising \(failed\) -> measuring"):
        state.transition_to(ExperimentPhase.MEASURING)


def test_every_change_updates_the_time() -> None:
    state = ExperimentState(experiment_id="a")
    created = state.last_updated

    state.transition_to(ExperimentPhase.MEASURING)
    moved = state.last_updated
    state.mark_failed("x")

    assert created <= moved <= state.last_updated
    assert created < state.last_updated


def test_a_saved_state_is_loaded_as_it_was(manager: StateManager) -> None:
    state = manager.create("gpt2_pytorch", config_hash="0123456789abcdef")
    state.transition_to(ExperimentPhase.MEASURING)
    manager.save(state)

    assert manager.load("gpt2_pytorch") == state
    assert state.subprocess_pid == os.getpid()


@given(
    name=st.text(min_size=1).filter(str.strip),
    error=st.text() | st.none(),
    phase=st.sampled_from(list(ExperimentPhase)),
)
def test_any_state_survives_its_file(
    name: str, error: str | None, phase: ExperimentPhase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manager = StateManager(tmp_path_factory.getbasetemp() / "any-state")
    state = ExperimentState(experiment_id=name, error_message=error, failed=error is not None, phase=phase)

    manager.save(state)

    assert manager.load(name) == state


def test_an_unknown_experiment_has_no_state(manager: StateManager) -> None:
    assert manager.load("nothing") is None
    assert manager.delete("nothing") is False
    assert manager.list_experiments() == []
    assert manager.cleanup_stale() == []


def test_nothing_is_written_before_there_is_something_to_say(tmp_path: Path) -> None:
    StateManager(tmp_path / ".state").list_experiments()

    assert list(tmp_path.iterdir()) == []


def test_an_id_is_used_once(manager: StateManager) -> None:
    manager.create("a")

    with pytest.raises(PersistenceError, match="'a' was begun here"):
        manager.create("a")


def test_an_id_cannot_lead_out_of_the_directory(tmp_path: Path, manager: StateManager) -> None:
    manager.create("../../escaped")

    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / ".state"]
    assert manager.list_experiments() == ["../../escaped"]


def test_a_deleted_state_is_gone(manager: StateManager) -> None:
    manager.create("a")

    assert manager.delete("a") is True
    assert manager.load("a") is None


def test_experiments_are_listed_oldest_first(manager: StateManager) -> None:
    for name in ("c", "a", "b"):
        manager.create(name)

    assert manager.list_experiments() == ["c", "a", "b"]


def test_the_latest_experiment_with_a_config_is_found(manager: StateManager) -> None:
    manager.create("first", config_hash="aaaa")
    manager.create("second", config_hash="aaaa")
    manager.create("other", config_hash="bbbb")

    found = manager.find_by_config_hash("aaaa")

    assert found is not None
    assert found.experiment_id == "second"
    assert manager.find_by_config_hash("cccc") is None


def measuring(manager: StateManager, name: str, process: ProcessIdentity | None = None) -> ExperimentState:
    state = manager.create(name, process=process)
    state.transition_to(ExperimentPhase.MEASURING)
    manager.save(state)
    return state


def test_a_measurement_whose_process_is_gone_becomes_failed(manager: StateManager) -> None:
    measuring(manager, "dead", finished_process())
    measuring(manager, "alive")

    assert manager.cleanup_stale() == ["dead"]

    dead, alive = manager.load("dead"), manager.load("alive")
    assert dead is not None
    assert dead.failed
    assert dead.phase is ExperimentPhase.MEASURING
    assert "ended while measuring" in (dead.error_message or "")
    assert alive is not None
    assert not alive.failed


def test_a_process_number_used_again_does_not_keep_a_dead_measurement_alive(manager: StateManager) -> None:
    mine = current_process()
    assert mine.started_ticks is not None
    measuring(manager, "dead", mine.model_copy(update={"started_ticks": mine.started_ticks - 1}))

    assert manager.cleanup_stale() == ["dead"]


def test_a_reboot_ends_every_process(manager: StateManager) -> None:
    measuring(manager, "dead", current_process().model_copy(update={"boot_id": "another boot"}))

    assert manager.cleanup_stale() == ["dead"]


def test_a_process_of_another_machine_is_left_alone(manager: StateManager) -> None:
    elsewhere = finished_process().model_copy(update={"host": "another-machine", "boot_id": "another boot"})
    measuring(manager, "elsewhere", elsewhere)

    assert manager.cleanup_stale() == []


def test_a_state_with_a_process_number_alone_is_judged_by_it(manager: StateManager) -> None:
    gone = finished_process().pid
    manager.save(ExperimentState(experiment_id="dead", phase=ExperimentPhase.MEASURING, subprocess_pid=gone))
    manager.save(ExperimentState(experiment_id="alive", phase=ExperimentPhase.MEASURING, subprocess_pid=os.getpid()))

    assert manager.cleanup_stale() == ["dead"]


def test_an_experiment_whose_process_went_before_its_window_opened_becomes_failed_too(manager: StateManager) -> None:
    manager.create("dead", process=finished_process())
    manager.create("alive")

    assert manager.cleanup_stale() == ["dead"]

    dead = manager.load("dead")
    assert dead is not None
    assert (dead.failed, dead.phase) == (True, ExperimentPhase.INITIALISING)
    assert "ended while initialising" in (dead.error_message or "")


def test_an_experiment_that_is_done_does_not_go_stale(manager: StateManager) -> None:
    gone = finished_process()
    done = ExperimentState(experiment_id="a", phase=ExperimentPhase.DONE, subprocess_pid=gone.pid, process=gone)
    manager.save(done)

    assert manager.cleanup_stale() == []


def test_a_zombie_does_not_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    identity = identify_process(process.pid)
    process.stdout.read()  # ends when the process has closed it, on its way out
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended and nobody has collected it

    assert not is_running(identity)
    process.wait()


DAMAGED = [b"", b"{", b"[]", b'{"experiment_id": ""}', b'{"experiment_id": "a", "phase": "dreaming"}', b"\xff\xfe"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_state_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    manager = StateManager(tmp_path)
    manager.create("a")
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)

    with pytest.raises(PersistenceError, match="damaged") as caught:
        manager.load("a")
    assert str(path) in str(caught.value)


def test_a_damaged_state_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = StateManager(tmp_path)
    manager.create("fine")
    (tmp_path / "broken.state.json").write_bytes(b"{")

    with caplog.at_level(logging.WARNING):
        assert manager.list_experiments() == ["fine"]
    assert "broken.state.json" in caplog.text


UNSEARCHABLE = """
import sys
from pathlib import Path
from llenergymeasure.core.state import StateManager
from llenergymeasure.exceptions import PersistenceError

manager = StateManager(Path(sys.argv[1]))
for act in (manager.load, manager.create, manager.delete):
    try:
        act("a")
    except PersistenceError as error:
        print(error)
"""


def test_a_directory_that_may_not_be_searched_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    directory = tmp_path / ".state"
    directory.mkdir(mode=0o000)

    told = subprocess.run(
        as_somebody(sys.executable, "-c", UNSEARCHABLE, str(directory)), capture_output=True, text=True, check=True
    )

    path = directory / "a.state.json"
    assert told.stdout.splitlines() == [
        f"Cannot read {path}: Permission denied.",
        f"Cannot read {path}: Permission denied.",
        f"Cannot delete {path}: Permission denied.",
    ]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(PersistenceError, match="file"):
        StateManager(tmp_path / "file" / ".state").create("a")
