from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llenergymeasure.core.host.processes import identify_process
from llenergymeasure.core.progress import Event, StepFinished, StepStarted, ignore_events
from llenergymeasure.core.state import ExperimentPhase, ExperimentState, StateManager, tracked
from llenergymeasure.exceptions import PersistenceError

HASH = "0123456789abcdef"


def state_on_disk(output_dir: Path) -> tuple[ExperimentPhase, bool]:
    state = StateManager(output_dir / ".state").load("run-1")
    assert state is not None
    return state.phase, state.failed


def test_the_state_on_disk_follows_the_experiment_and_goes_when_its_result_is_there(tmp_path: Path) -> None:
    with tracked(tmp_path, "run-1", HASH, ignore_events) as follow:
        follow(StepStarted("preflight"))
        assert not (tmp_path / ".state").exists()
        follow(StepFinished("preflight", "ok"))
        assert state_on_disk(tmp_path) == (ExperimentPhase.INITIALISING, False)
        follow(StepStarted("measure", 10))
        assert state_on_disk(tmp_path) == (ExperimentPhase.MEASURING, False)
        follow(StepStarted("finish"))
        assert state_on_disk(tmp_path) == (ExperimentPhase.DONE, False)
    assert not (tmp_path / ".state").exists()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), KeyboardInterrupt()])
def test_an_experiment_that_ends_early_leaves_its_phase_and_the_reason(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), tracked(tmp_path, "run-1", HASH, ignore_events) as follow:
        follow(StepFinished("preflight", "ok"))
        follow(StepStarted("measure", 10))
        raise error
    assert state_on_disk(tmp_path) == (ExperimentPhase.MEASURING, True)
    found = StateManager(tmp_path / ".state").find_by_config_hash(HASH)
    assert found is not None
    assert found.error_message in ("CUDA error", "KeyboardInterrupt")


def test_a_failed_preflight_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), tracked(tmp_path, "run-1", HASH, ignore_events) as follow:
        follow(StepStarted("preflight"))
        raise RuntimeError("no GPU")
    assert list(tmp_path.iterdir()) == []


def test_without_an_output_directory_events_pass_and_nothing_is_written(tmp_path: Path) -> None:
    events: list[Event] = []
    with tracked(None, "run-1", HASH, events.append) as follow:
        follow(StepFinished("preflight", "ok"))
    assert events == [StepFinished("preflight", "ok")]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_after_the_state_was_created_costs_the_state_and_not_the_experiment(tmp_path: Path) -> None:
    with tracked(tmp_path, "run-1", HASH, ignore_events) as follow:
        follow(StepFinished("preflight", "ok"))
        shutil.rmtree(tmp_path / ".state")
        (tmp_path / ".state").write_text("nothing can be written in here")
        follow(StepStarted("measure", 10))
        follow(StepStarted("finish"))


def test_the_error_of_an_experiment_is_told_also_when_its_state_cannot_be(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="CUDA error"),
        tracked(tmp_path, "run-1", HASH, ignore_events) as follow,
    ):
        follow(StepFinished("preflight", "ok"))
        shutil.rmtree(tmp_path / ".state")
        (tmp_path / ".state").write_text("nothing can be written in here")
        raise RuntimeError("CUDA error")


def test_a_place_that_cannot_hold_a_state_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    place = tmp_path / "results"
    place.write_text("a file")
    with (
        pytest.raises(PersistenceError, match=r"Cannot create .*results.\.state"),
        tracked(place, "run-1", HASH, ignore_events) as follow,
    ):
        follow(StepFinished("preflight", "ok"))


def test_a_start_tells_of_runs_that_were_cut_off_and_of_one_that_measures_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = StateManager(tmp_path / ".state")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = identify_process(process.pid)
    manager.create("cut-off", HASH, gone)
    manager.create("twin", HASH)
    manager.create("another", "another hash")
    with tracked(tmp_path, "run-1", HASH, ignore_events) as follow:
        follow(StepFinished("preflight", "ok"))
    cut_off, twin = (record.getMessage() for record in caplog.records)
    assert "cut-off, was cut off before it was done" in cut_off
    assert "is running the same configuration (twin)" in twin


def written(**changes: object) -> Callable[[Path], object]:
    fields = {"experiment_id": "odd", "phase": "measuring", "config_hash": HASH, **changes}
    return lambda path: path.write_text(json.dumps(fields))


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


ODD: dict[str, Callable[[Path], object]] = {
    "a number no process can have": written(subprocess_pid=10**30),
    "a negative number": written(subprocess_pid=-1),
    "an identity with such a number": written(process={"pid": 2**31}),
    "no process": written(),
    "another experiment's state": written(experiment_id="other"),
    "nothing but brackets": lambda path: path.write_text("[" * 100_000),
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device without an end": link_to("/dev/zero"),
    "a link to itself": link_to("odd.state.json"),
}


@pytest.mark.parametrize("plant", ODD.values(), ids=ODD)
def test_an_odd_file_among_the_states_is_told_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plant: Callable[[Path], object]
) -> None:
    manager = StateManager(tmp_path / ".state")
    manager.create("another", "another hash")
    plant(tmp_path / ".state" / "odd.state.json")
    with tracked(tmp_path, "run-1", HASH, ignore_events) as follow:
        follow(StepFinished("preflight", "ok"))
        assert state_on_disk(tmp_path) == (ExperimentPhase.INITIALISING, False)
    (told,) = (record.getMessage() for record in caplog.records)
    assert "odd" in told
    assert "another" in manager.list_experiments()


def test_dates_without_a_zone_compare_with_those_that_have_one(tmp_path: Path) -> None:
    manager = StateManager(tmp_path)
    manager.create("new")
    early = ExperimentState(experiment_id="odd")
    manager.save(early)
    text = json.loads((tmp_path / "odd.state.json").read_text()) | {"started_at": "2026-01-02T03:04:05"}
    (tmp_path / "odd.state.json").write_text(json.dumps(text))
    assert manager.list_experiments() == ["odd", "new"]


def test_an_earlier_failure_of_the_same_configuration_is_no_twin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = StateManager(tmp_path / ".state")
    state = manager.create("failed", HASH)
    state.mark_failed("CUDA out of memory")
    manager.save(state)
    with tracked(tmp_path, "run-1", HASH, ignore_events) as follow:
        follow(StepFinished("preflight", "ok"))
    assert caplog.records == []
