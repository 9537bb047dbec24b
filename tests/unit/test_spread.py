"""A study over nodes that come, go and fail; nodes and experiments are played, threads and files are real."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_fakes import A100, H100, FakeCluster, node
from fakes import VirtualClock
from llenergymeasure.config.models import StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import BackendError, PreFlightError
from llenergymeasure.results.persistence import REPORT_FILE, load_result
from llenergymeasure.runners.cluster import Node, NodeLostError
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.supervise import Interrupt, RunInterruptedError
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.manifest import load_manifest
from llenergymeasure.study.plan import RunFinished, StudyEvent, StudyWarning
from llenergymeasure.study.runner import StudyHost, StudyInterruptedError, StudyRunner, StudyStoppedError
from llenergymeasure.study.spread import Watch
from study_fakes import ScriptedLauncher, study_of


class Show:
    """A study on a cluster, and what it told."""

    def __init__(self, directory: Path, cluster: FakeCluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.events: list[StudyEvent] = []
        self.on_event: Callable[[StudyEvent], object] = lambda event: None

    def observe(self, event: StudyEvent) -> None:
        self.events.append(event)
        self.on_event(event)

    def watch(self, study: StudyConfig) -> StudyResult:
        """Run it with a look at the cluster at every turn."""
        watch = Watch(look_s=0.0, tell_s=0.0)
        host = StudyHost(ScriptedLauncher(VirtualClock()), observer=self.observe, cluster=self.cluster, watch=watch)
        return StudyRunner(study, self.directory, UserConfig(), host).run()

    def run(self, study: StudyConfig, resume: Path | None = None) -> StudyResult:
        place, machine = StudyPlace(self.directory, resume=resume, cluster="auto"), UserConfig()
        return execute_study(study, place, machine, lambda result: None, self.observe, connect=self.cluster.connect)

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, StudyWarning)]

    @property
    def finished(self) -> list[RunFinished]:
        return [event for event in self.events if isinstance(event, RunFinished)]


def at_once(count: int) -> Callable[[Node, Job, Interrupt], None]:
    """Runs that wait until `count` of them are under way."""
    barrier = threading.Barrier(count, timeout=30)
    return lambda node, job, interrupt: barrier.wait()  # type: ignore[return-value]


def test_as_many_run_at_once_as_there_are_nodes_and_each_result_names_its_node(tmp_path: Path) -> None:
    show = Show(tmp_path, FakeCluster([node("x"), node("y"), node("z")], at_once(3)))
    result = show.run(study_of(*"abcdef"))
    assert result.summary.completed == 6
    assert Counter(event.node for event in show.finished) == {"x": 2, "y": 2, "z": 2}
    saved = {one.model_name: one.node for one in result.results()}
    assert saved == {model: name for name, model in show.cluster.begun}
    assert sorted(show.cluster.released) == ["x", "y", "z"]


def test_what_no_node_can_run_is_refused_with_what_the_cluster_has(tmp_path: Path) -> None:
    big = study_of("a").model_copy(update={"experiments": [vllm_on(8)]})
    show = Show(tmp_path, FakeCluster([node("x", gpus=4, gpu=A100)], reasons=["old: takes no experiments"]))
    with pytest.raises(PreFlightError) as caught:
        show.run(big)
    assert "asks for 8 GPUs on one node, and the cluster has x: 4 × NVIDIA A100" in str(caught.value)
    assert "old: takes no experiments" in str(caught.value)
    assert not list(tmp_path.iterdir())


def vllm_on(gpus: int) -> Any:
    from llenergymeasure.config.models import ExperimentConfig

    return ExperimentConfig.model_validate({"model": "m", "backend": "vllm", "vllm": {"tensor_parallel_size": gpus}})


def test_pre_flight_asks_a_node_that_could_run_it(tmp_path: Path) -> None:
    show = Show(tmp_path, FakeCluster([node("x")], failures={"a": ["no such model"]}))
    with pytest.raises(PreFlightError, match="no such model"):
        show.run(study_of("a"))
    assert show.cluster.asked == [("x", "a")]


def test_a_lost_node_costs_nothing_but_time(tmp_path: Path) -> None:
    lost = threading.Event()

    def act(where: Node, job: Job, interrupt: Interrupt) -> None:
        if where.name == "weak" and not lost.is_set():
            cluster.there = [node("good")]
            lost.set()
            raise NodeLostError("its power is gone.")

    cluster = FakeCluster([node("weak"), node("good")], act)
    show = Show(tmp_path, cluster)
    result = show.run(study_of(*"abcd"))
    assert (result.summary.completed, result.summary.failed) == (4, 0)
    assert [one.node for one in result.results()] == ["good"] * 4
    (told,) = [warning for warning in show.warnings if "lost" in warning]
    assert told.startswith("weak is lost: its power is gone. ")
    assert "is tried once more" in told


def test_what_loses_two_nodes_has_failed_with_its_cause(tmp_path: Path) -> None:
    def act(where: Node, job: Job, interrupt: Interrupt) -> None:
        if job.config.model == "bad":
            raise NodeLostError("the worker died.")

    show = Show(tmp_path, FakeCluster([node("x"), node("y"), node("z")], act))
    result = show.run(study_of("bad", "a", "b"))
    assert (result.summary.completed, result.summary.failed) == (2, 1)
    (failure,) = result.failed
    assert (failure.error_type, failure.reason) == ("NodeLostError", "the worker died.")
    tries = [name for name, model in show.cluster.begun if model == "bad"]
    assert len(tries) == len(set(tries)) == 2


def test_a_cluster_that_shrinks_to_nothing_is_waited_for(tmp_path: Path) -> None:
    def act(where: Node, job: Job, interrupt: Interrupt) -> None:
        if where.name == "spot" and job.config.model == "b":
            cluster.there = []
            raise NodeLostError("preempted.")

    def on_event(event: StudyEvent) -> None:
        if isinstance(event, StudyWarning) and "Waiting" in event.message:
            cluster.there = [node("new")]

    cluster = FakeCluster([node("spot")], act)
    show = Show(tmp_path, cluster)
    show.on_event = on_event
    result = show.watch(study_of("a", "b", "c"))
    assert [one.node for one in result.results()] == ["spot", "new", "new"]
    assert any(
        "No node of the cluster is free for the 2 runs that are left (nodes: none)" in said for said in show.warnings
    )


def test_nodes_that_are_busy_with_other_work_are_waited_for_and_it_is_said(tmp_path: Path) -> None:
    said = threading.Event()

    def on_event(event: StudyEvent) -> None:
        if isinstance(event, StudyWarning) and "is free for the 1 runs" in event.message:
            said.set()

    show = Show(tmp_path, FakeCluster([node("busy")], on_claim=lambda node, interrupt: assert_true(said.wait(30))))
    show.on_event = on_event
    assert show.watch(study_of("a")).summary.completed == 1


def test_a_study_does_not_outlast_its_runs_for_a_node_that_stays_busy(tmp_path: Path) -> None:
    waits, ended = threading.Event(), threading.Event()

    def claim(where: Node, interrupt: Interrupt) -> None:
        if where.name == "busy":
            waits.set()
            while not interrupt.requested:
                time.sleep(0.01)
            ended.set()
            raise RunInterruptedError("interrupted")
        assert waits.wait(30)

    show = Show(tmp_path, FakeCluster([node("busy"), node("free")], on_claim=claim))
    assert show.run(study_of("a")).summary.completed == 1
    assert ended.is_set()


def assert_true(value: bool) -> None:
    assert value


def test_a_report_is_drawn_on_the_node_of_its_run_and_here_where_that_cannot(tmp_path: Path) -> None:
    def draw(where: Node, directory: Path) -> str | None:
        return None if where.name == "bare" else f"{where.name}: {load_result(directory).model_name}"

    show = Show(tmp_path, FakeCluster([node("bare"), node("able")], at_once(2), draw=draw))
    result = show.run(study_of("a", "b"))
    pages = {
        one.node: (path.parent / REPORT_FILE).read_text()
        for path in map((tmp_path / result.study_id).joinpath, result.result_files)
        for one in [load_result(path)]
    }
    (able,) = [one for one in result.results() if one.node == "able"]
    assert pages["able"] == f"able: {able.model_name}"
    assert pages["bare"].startswith("<!DOCTYPE html>")


def test_nodes_that_come_later_help(tmp_path: Path) -> None:
    meeting = at_once(2)

    def act(where: Node, job: Job, interrupt: Interrupt) -> None:
        cluster.there = [node("first"), node("second")]
        meeting(where, job, interrupt)

    cluster = FakeCluster([node("first")], act)
    show = Show(tmp_path, cluster)
    show.watch(study_of("a", "b"))
    assert {name for name, _ in cluster.begun} == {"first", "second"}


def test_an_interrupt_tears_every_node_down_and_keeps_what_is_finished(tmp_path: Path) -> None:
    interrupt = Interrupt()
    under_way = threading.Barrier(2, timeout=30)

    def act(where: Node, job: Job, asked: Interrupt) -> None:
        if job.config.model == "a":
            return
        under_way.wait()
        interrupt.request()
        while not asked.requested:
            threading.Event().wait(0.01)
        raise RunInterruptedError("torn down")

    cluster = FakeCluster([node("x"), node("y")], act)
    host = StudyHost(ScriptedLauncher(VirtualClock()), interrupt=interrupt, cluster=cluster)
    study = study_of("a", "b", "c")
    with pytest.raises(StudyInterruptedError):
        StudyRunner(study, tmp_path, UserConfig(), host).run()
    manifest = load_manifest(tmp_path)
    assert (manifest.status, manifest.completed, manifest.pending) == ("interrupted", 1, 2)
    assert sorted(cluster.released) == ["x", "y"]


def test_failure_after_failure_ends_the_study_on_every_node(tmp_path: Path) -> None:
    def act(where: Node, job: Job, interrupt: Interrupt) -> None:
        raise BackendError("out of memory")

    show = Show(tmp_path, FakeCluster([node("x"), node("y")], act))
    with pytest.raises(StudyStoppedError, match="failed one after the other, all for this reason: out of memory"):
        show.run(study_of(*"abcdefgh", max_consecutive_failures=3))
    assert len(show.cluster.begun) <= 4
    assert sorted(show.cluster.released) == ["x", "y"]


def test_a_node_that_cannot_be_given_back_does_not_hold_up_the_end_of_the_study(tmp_path: Path) -> None:
    def refuse(where: Node) -> None:
        raise ConnectionError("the client is gone")

    show = Show(tmp_path, FakeCluster([node("x")], on_release=refuse))
    assert show.run(study_of("a", "b")).summary.completed == 2
    assert show.warnings == ["x could not be given back: the client is gone"]


def test_no_average_runs_over_unlike_hardware_and_the_study_says_so(tmp_path: Path) -> None:
    first = Show(tmp_path, FakeCluster([node("old", gpu=A100)]))
    directory = tmp_path / first.run(study_of("a", "b")).study_id
    for path in directory.glob("*/result.json"):  # as of a machine that has another board by now
        path.write_text(path.read_text().replace(A100, "Tesla P100"))
    told: list[StudyEvent] = []
    place, launcher = StudyPlace(tmp_path, resume=directory), ScriptedLauncher(VirtualClock())
    more = study_of("a", "b", cycles=2)
    result = execute_study(more, place, UserConfig(), lambda result: None, told.append, launcher)
    assert [(entry.model_name, entry.hardware, entry.cycles) for entry in result.statistics] == [
        ("a", "Tesla P100", 1),
        ("a", "A100", 1),
        ("b", "Tesla P100", 1),
        ("b", "A100", 1),
    ]
    assert result.statistics[0].config_name == "a / pytorch / bf16 / Tesla P100"
    warnings = [event.message for event in told if isinstance(event, StudyWarning)]
    assert any("unlike hardware (A100; Tesla P100)" in said for said in warnings)


def test_a_resumed_study_keeps_to_the_hardware_of_its_results(tmp_path: Path) -> None:
    first = Show(tmp_path, FakeCluster([node("old", gpu=A100)]))
    study = study_of("a", "b")
    directory = tmp_path / first.run(study).study_id
    more = study_of("a", "b", cycles=2)
    second = Show(tmp_path, FakeCluster([node("new", gpu=H100), node("old", gpu=A100)]))
    second.run(more, resume=directory)
    assert {name for name, _ in second.cluster.begun} == {"old"}
    cycles = [load_result(path) for path in directory.glob("*/result.json")]
    assert not any("environment_changed" in str(one.measurement_warnings) for one in cycles)
