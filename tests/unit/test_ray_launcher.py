"""Addresses of Ray clusters, and what a launcher makes of what its agent says; Ray and the agent are played."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cluster_fakes import FakeCluster, node
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import ignore_events
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.exceptions import PreFlightError
from llenergymeasure.runners.cluster import Node, NodeLostError
from llenergymeasure.runners.job import Job, MeasuredRun, run_to_json
from llenergymeasure.runners.ray import ray_cluster
from llenergymeasure.runners.ray_group import RayGroupLauncher
from llenergymeasure.runners.ray_launcher import Member, RayNodeLauncher
from llenergymeasure.runners.supervise import Interrupt
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.preflight import check_on
from study_fakes import result_of, study_of


class PlayedRay:
    """Actors of this process that answer at once."""

    class exceptions:  # noqa: N801 (as Ray has it)
        RayError = type("RayError", (Exception,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})
        ActorUnavailableError = type("ActorUnavailableError", (RayError,), {})

    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node_id, soft: node_id)
    )

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *arguments: Actor(self._agent)))

    def wait(self, answers: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return answers, []

    def get(self, answer: Callable[[], Any]) -> Any:
        return answer()


class Actor:
    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._agent, name)
        return SimpleNamespace(remote=lambda *arguments: lambda: method(*arguments))


class PlayedAgent:
    """Its job is over at once, and leaves files."""

    def __init__(self, outcome: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        self._files = files
        self._outcome = {**outcome, "files": {name: len(content) for name, content in files.items()}}

    def ready(self) -> bool:
        return True

    def begin(self, content: bytes) -> None: ...

    def clear(self) -> None: ...

    def news(self, known: Mapping[str, int]) -> dict[str, Any]:
        return {"events": [], "logs": {}, "over": True}

    def outcome(self) -> Any:
        return self._outcome

    def part(self, name: str, offset: int) -> bytes:
        return self._files[name][offset : offset + 3]


class LostAgent(PlayedAgent):
    """Its node goes after one word."""

    def __init__(self, end: bytes, size: int) -> None:
        super().__init__({}, {})
        self._words = [{"events": [], "logs": {"child.log": {"size": size, "end": end}}, "over": False}]

    def news(self, known: Mapping[str, int]) -> dict[str, Any]:
        if not self._words:
            assert known == {"child.log": 5000}
            raise PlayedRay.exceptions.RayError("The node died.")
        return self._words.pop()


def launcher_of(agent: Any) -> RayNodeLauncher:
    launcher = RayNodeLauncher(PlayedRay(agent), Member(node("x"), 1.0, 1.0))  # type: ignore[arg-type]
    launcher.claim(Interrupt())
    return launcher


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(ExperimentConfig(model="m"), UserConfig(), tmp_path)


def test_a_file_that_the_drivers_disk_refuses_costs_the_file_and_not_the_result(job: Job) -> None:
    (job.work_dir / "trace.parquet").mkdir()  # cannot be written, as on a disk that is full
    files = Artefacts(job.work_dir / "timeseries.parquet", job.work_dir / "trace.parquet")
    run = run_to_json(MeasuredRun(result_of(job.config), files), job.work_dir)
    agent = PlayedAgent({"run": run}, {"timeseries.parquet": b"by the second", "trace.parquet": b"all"})
    measured = launcher_of(agent).run(job, ignore_events, Interrupt())
    assert measured.result == result_of(job.config)
    assert measured.artefacts == Artefacts(timeseries=job.work_dir / "timeseries.parquet")
    assert (job.work_dir / "timeseries.parquet").read_bytes() == b"by the second"


def test_of_a_job_whose_node_is_lost_the_last_lines_are_kept_and_told(job: Job) -> None:
    agent = LostAgent(b"of a line\nCUDA error: out of memory\n", size=5000)
    with pytest.raises(NodeLostError, match=r"The node died\. \(last output: CUDA error: out of memory\)$"):
        launcher_of(agent).run(job, ignore_events, Interrupt())
    assert (job.work_dir / "child.log").read_text() == (
        "[… 4964 bytes left out …]\nof a line\nCUDA error: out of memory\n"
    )


class LosesAnotherNode(PlayedAgent):
    """It says one word; then the node of a meter goes, and it says nothing more."""

    is_lost = False

    def now(self) -> float:
        return 0.0

    def watch(self) -> None:
        if self.is_lost:
            raise PlayedRay.exceptions.RayError("The node died.")

    def news(self, known: Mapping[str, int]) -> dict[str, Any]:
        self.is_lost = True
        return {"events": [], "logs": {"child.log": {"size": 16, "end": b"NCCL: timed out\n"}}, "over": False}


def test_where_another_node_of_a_run_is_lost_its_last_line_is_told_too(job: Job) -> None:
    agent = LosesAnotherNode({}, {})

    class RayWithoutNews(PlayedRay):
        def wait(self, answers: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
            return ([], answers) if agent.is_lost and timeout else (answers, [])

    members = [Member(node(name), 1.0, 1.0) for name in "xy"]
    launcher = RayGroupLauncher(RayWithoutNews(agent), node("x+y", gpus=2), members)  # type: ignore[arg-type]
    launcher.claim(Interrupt())
    with pytest.raises(NodeLostError, match=r"of x\+y, y is lost: The node died\. \(last output: NCCL: timed out\)$"):
        launcher.run(job, ignore_events, Interrupt())


class CallingRay(PlayedRay):
    """Functions that are sent to a node are called in this process."""

    def remote(self, kind: Callable[..., Any]) -> Any:
        return SimpleNamespace(
            options=lambda **options: SimpleNamespace(remote=lambda *arguments: lambda: kind(*arguments))
        )


def test_pre_flight_refuses_what_the_settings_of_a_node_forbid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "llenergymeasure" / "config.yaml"
    settings.parent.mkdir()
    settings.write_text("runners: {pytorch: 'docker:no/such:1'}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # which has no Docker
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a node forgets it

    class OneNode(FakeCluster):
        def launcher_on(self, node: Node) -> Any:
            return RayNodeLauncher(CallingRay(None), Member(node, 1.0, 1.0))  # type: ignore[arg-type]

    with pytest.raises(PreFlightError, match=r"runners\.pytorch: docker:no/such:1: Docker is not installed"):
        check_on(OneNode([node("x")]))([ExperimentConfig(model="m")], UserConfig())


@pytest.mark.parametrize(
    "address", ["", "local", "head", "127.0.0.1", ":6379", "head:", "head:6379x", "ray://", "ray://head"]
)
def test_what_is_no_address_is_refused_before_ray_makes_something_of_it(address: str, tmp_path: Path) -> None:
    """`local` has Ray start a cluster; nothing at all must not mean this machine."""
    with pytest.raises(PreFlightError, match=r"is no address\. Give HOST:6379, ray://HOST:10001, auto, or none"):
        execute_study(study_of("a"), StudyPlace(tmp_path, cluster=address), UserConfig(), lambda result: None)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def connected_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is connected to a cluster already."""
    ray = ModuleType("ray")
    ray.is_initialized = lambda: True  # type: ignore[attr-defined]
    ray.get_runtime_context = lambda: SimpleNamespace(gcs_address="10.0.0.1:6379")  # type: ignore[attr-defined]
    ray.exceptions = ray.util = ray  # type: ignore[attr-defined]
    for name in ("ray", "ray.exceptions", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ray)


@pytest.mark.usefixtures("connected_ray")
def test_the_connection_that_is_there_is_used_for_its_own_cluster_and_no_other() -> None:
    for address in ("auto", "10.0.0.1:6379", "127.0.1.1:6379", "localhost:6379", "ray://head:10001"):
        with ray_cluster(address) as cluster:
            assert cluster.address == address
    for address in ("10.0.0.2:6379", "10.0.0.1:6380", "..:6379"):
        told = f"--cluster {address}: this process is connected to the Ray cluster at 10.0.0.1:6379 already"
        with pytest.raises(PreFlightError, match=told), ray_cluster(address):
            pass
