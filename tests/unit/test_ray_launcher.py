"""What a launcher of a Ray cluster makes of what its agent says; Ray and the agent are played."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster_fakes import node
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import ignore_events
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.runners.cluster import NodeLostError
from llenergymeasure.runners.job import Job, MeasuredRun, run_to_json
from llenergymeasure.runners.ray_launcher import Member, RayNodeLauncher
from llenergymeasure.runners.supervise import Interrupt
from study_fakes import result_of


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
