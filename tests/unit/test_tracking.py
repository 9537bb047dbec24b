from __future__ import annotations

from pathlib import Path

import pytest

from llenergymeasure.core.progress import Event, StepFinished, StepStarted, ignore_events
from llenergymeasure.core.state import ExperimentPhase, StateManager
from llenergymeasure.runners.tracking import tracked

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
