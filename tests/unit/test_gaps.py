from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.study.gaps import enter_key, gaps_of
from llenergymeasure.study.plan import GapEnded, GapStarted, GapTick, plan_runs
from study_fakes import Stage, study_of


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def kinds_between(order: str, cycles: int) -> list[str]:
    study = study_of("a", "b", cycles=cycles, cycle_order=order, config_gap_seconds=60.0, cycle_gap_seconds=300.0)
    gaps, runs = gaps_of(study.execution, UserConfig()), plan_runs(study)
    return [gaps.between(one, two)[0] for one, two in itertools.pairwise(runs)]


@pytest.mark.parametrize(
    ("order", "cycles", "expected"),
    [
        ("interleaved", 1, ["config"]),
        ("interleaved", 2, ["config", "cycle", "config"]),
        ("sequential", 2, ["cycle", "config", "cycle"]),
    ],
)
def test_a_gap_is_between_cycles_where_the_cycle_goes_up(order: str, cycles: int, expected: list[str]) -> None:
    assert kinds_between(order, cycles) == expected


def test_gaps_come_from_the_study_else_from_the_machine() -> None:
    machine = UserConfig.model_validate({"execution": {"config_gap_seconds": 7.0, "cycle_gap_seconds": 8.0}})
    own = study_of("a", config_gap_seconds=0.0, cycle_gap_seconds=None)
    gaps = gaps_of(own.execution, machine)
    assert (gaps.config_s, gaps.cycle_s) == (0.0, 8.0)


def test_gaps_really_pass_and_there_is_none_after_the_last_run(stage: Stage) -> None:
    start_s = stage.clock.now()
    stage.runner(
        study_of("a", "b", cycles=2, cycle_order="interleaved", config_gap_seconds=60.0, cycle_gap_seconds=300.0)
    ).run()
    assert stage.clock.now() - start_s == pytest.approx(4 * 10 + 60 + 300 + 60)
    assert [gap.duration_s for gap in stage.of(GapStarted)] == [60.0, 300.0, 60.0]


def test_gap_counts_down_once_a_second(stage: Stage) -> None:
    stage.runner(study_of("a", "b", config_gap_seconds=5.0)).run()
    assert [tick.remaining_s for tick in stage.of(GapTick)] == pytest.approx([5, 4, 3, 2, 1])
    assert stage.of(GapEnded) == [GapEnded("config", skipped=False)]


def test_next_child_starts_near_the_end_of_the_gap_and_gets_that_very_job(stage: Stage) -> None:
    start_s = stage.clock.now()
    stage.runner(study_of("a", "b", config_gap_seconds=60.0)).run()
    ((moment_s, job),) = stage.launcher.prepared
    assert moment_s - start_s == pytest.approx(10 + 50, abs=0.5)
    assert stage.launcher.jobs[1] is job


def test_gap_of_zero_is_no_gap(stage: Stage) -> None:
    stage.runner(study_of("a", "b")).run()
    assert stage.of(GapStarted) == []
    assert stage.launcher.prepared == []


def answers(*values: bool) -> Callable[[], bool]:
    remaining = list(values)
    return lambda: remaining.pop(0) if remaining else False


def test_enter_ends_a_gap(stage: Stage) -> None:
    start_s = stage.clock.now()
    stage.runner(study_of("a", "b", config_gap_seconds=600.0), skip_gap=answers(False, False, False, True)).run()
    assert stage.of(GapEnded) == [GapEnded("config", skipped=True)]
    assert stage.clock.now() - start_s < 22


def test_enter_pressed_before_the_gap_does_not_count(stage: Stage) -> None:
    stage.runner(study_of("a", "b", config_gap_seconds=5.0), skip_gap=answers(True, True, False)).run()
    assert stage.of(GapEnded) == [GapEnded("config", skipped=False)]


def test_enter_at_the_moment_at_which_the_gap_is_told_ends_it(stage: Stage) -> None:
    """Whoever reads "Enter skips it" may be quick."""
    stage.runner(study_of("a", "b", config_gap_seconds=600.0), skip_gap=lambda: stage.of(GapStarted) != []).run()
    assert stage.of(GapEnded) == [GapEnded("config", skipped=True)]


def test_interrupt_ends_a_gap(stage: Stage) -> None:
    def observer(event: object) -> None:
        stage.events.append(event)  # type: ignore[arg-type]
        if isinstance(event, GapTick) and event.remaining_s < 550:
            stage.interrupt.request()

    with pytest.raises(KeyboardInterrupt):
        stage.runner(study_of("a", "b", config_gap_seconds=600.0), observer=observer).run()
    assert len(stage.launcher.jobs) == 1


def test_enter_key_reads_a_terminal() -> None:
    controller, terminal = os.openpty()
    with open(terminal, encoding="utf-8") as stream:
        pressed = enter_key(stream)
        assert pressed is not None
        assert not pressed()
        os.write(controller, b"\n")
        assert pressed()
        assert not pressed()
    os.close(controller)


def test_there_is_no_enter_key_without_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "input").touch()
    with open(tmp_path / "input", encoding="utf-8") as stream:
        assert enter_key(stream) is None
    assert enter_key(stream) is None
