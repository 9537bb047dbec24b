"""A node of a Ray cluster from the inside: its agent runs jobs there, as a launcher on that machine would.

    driver ── Ray ── agent (one actor on the node, which holds all of it) ── guardian ── job ── engine workers …

What crosses is text and bytes: `job.json` as it is on one machine, the lines of events, the result as its process
handed it over, and its files in parts. When the driver is gone Ray ends the agent, and then the guardian ends the job.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, TypedDict

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import load_user_config
from llenergymeasure.constants import VERSION
from llenergymeasure.core.gpu.driver import GpuDriverError
from llenergymeasure.core.host.environment import read_cpu
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.host.leftovers import leftover_gpu_memory
from llenergymeasure.core.progress import Event
from llenergymeasure.exceptions import ExperimentError
from llenergymeasure.results.persistence import RESULT_FILE
from llenergymeasure.results.report.write import page_of
from llenergymeasure.runners.child import to_line
from llenergymeasure.runners.job import JOB_FILE, Job, MetersElsewhere, read_job, run_to_json
from llenergymeasure.runners.launchers import ChosenLauncher, runs_here
from llenergymeasure.runners.ray_worker import begin_where_the_study_did, forget_what_ray_set
from llenergymeasure.runners.supervise import ChildFailedError, Interrupt, RunInterruptedError

NEWS_S: Final = 2.0
"""Time between two words of an agent to the driver, in seconds: what a measurement must not be disturbed by is rare."""

END_BYTES: Final = 16_384
"""What the driver has of each log while a job runs: its end."""

PART_BYTES: Final = 64_000_000
"""Size of the parts in which files cross."""


class Introduction(TypedDict):
    """What a node says of itself."""

    version: str
    gpu_names: list[str]
    cpu: str | None


class LogEnd(TypedDict):
    """A log so far: its size, and its last bytes."""

    size: int
    end: bytes


class News(TypedDict):
    """What has happened since the last word: events as lines, logs that have grown; `over`: there is an outcome."""

    events: list[bytes]
    logs: dict[str, LogEnd]
    over: bool


class Outcome(TypedDict, total=False):
    """What came of a job: `run` as JSON and the sizes of its files by name, or what it failed with."""

    run: str
    files: dict[str, int]
    error_type: str
    message: str
    traceback: str
    interrupted: bool


def introduce() -> Introduction:
    """Tell what this node is; takes nothing of it."""
    forget_what_ray_set()
    host = Host()
    try:
        names = [gpu.name for gpu in host.visible_gpus()]
    except GpuDriverError:
        names = []
    return {"version": VERSION, "gpu_names": names, "cpu": read_cpu(host.root).model}


def failures_there(cwd: str, configs: Sequence[str]) -> list[list[str]]:
    """What experiments, given as JSON, would fail for on this node by its own settings.

    Args:
        cwd: See `NodeAgent`.

    Raises:
        ChildFailedError: It cannot be found out.
    """
    begin_where_the_study_did(cwd)
    read = [ExperimentConfig.model_validate_json(config) for config in configs]
    return ChosenLauncher().failures(read, load_user_config())


class NodeAgent:
    """Runs one job after the other on its node. Every method may be called again when its answer was lost.

    Args:
        cwd: Where the study was started.
        meters: Names of the meters of further nodes that a job may use, by those of the nodes.
    """

    def __init__(self, cwd: str, meters: Mapping[str, str] | None = None) -> None:
        begin_where_the_study_did(cwd)
        self._meters = dict(meters or {})
        self._launcher = ChosenLauncher()
        self._thread = ThreadPoolExecutor(1, "llem-job")
        self._content: bytes | None = None
        self._begun = False
        self._directory = Path()
        self._job: Job | None = None
        self._interrupt = Interrupt()
        self._events: list[bytes] = []
        self._listening = threading.Lock()
        self._over = threading.Event()
        self._outcome: Outcome = {}
        self._files: list[Path] = []

    def ready(self) -> bool:
        """Answers when the node is this agent's."""
        return True

    def leftovers(self) -> list[str]:
        """GPU memory that somebody left behind."""
        return list(leftover_gpu_memory())

    def prepare(self, content: bytes) -> None:
        """Start the interpreter of a job that comes next; `content` is that of its `job.json`."""
        self._take(content)
        self._thread.submit(self._prepare)

    def begin(self, content: bytes) -> None:
        """Run a job; returns at once."""
        if content != self._content or not self._begun:
            self._take(content)
            self._begun = True
            self._thread.submit(self._run)

    def news(self, known: Mapping[str, int]) -> News:
        """What has happened, when there is an outcome or `NEWS_S` have passed.

        Args:
            known: Sizes of logs as they were told last.
        """
        self._over.wait(NEWS_S)
        over = self._over.is_set()  # first: what came before the outcome is among the events then
        with self._listening:
            events, self._events = self._events, []
        logs = {} if over else {path.name: _end_of(path, size) for path, size in self._grown(known)}
        return {"events": events, "logs": logs, "over": over}

    def stop(self) -> None:
        """Ask the job to end; a second time: at once."""
        self._interrupt.request()

    def outcome(self) -> Outcome:
        """What came of the job."""
        return self._outcome

    def part(self, name: str, offset: int) -> bytes:
        """A part of one of the job's files."""
        with (self._directory / name).open("rb") as file:
            file.seek(offset)
            return file.read(PART_BYTES)

    def page(self, result: bytes) -> str:
        """The report of the job's result, given as it was saved; the files that belong beside it are still here.

        Raises:
            Exception: Whatever drawing ran into.
        """
        return self._thread.submit(self._draw, result).result()

    def clear(self) -> None:
        """Remove the job's directory."""
        self._launcher.discard()
        if self._content is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._content, self._job, self._begun = None, None, False

    def _take(self, content: bytes) -> None:
        """Make a directory with a job in it, unless that has been done."""
        if content == self._content:
            return
        self.clear()
        self._directory = Path(tempfile.mkdtemp(prefix="llem-"))
        (self._directory / JOB_FILE).write_bytes(content)
        self._content, self._interrupt, self._events, self._outcome = content, Interrupt(), [], {}
        self._over.clear()

    def _read(self) -> Job:
        """The job, on this node's own terms."""
        if self._job is None:
            forget_what_ray_set()
            job = replace(read_job(self._directory), machine=load_user_config())
            self._job = replace(job, elsewhere=self._elsewhere(job))
        return self._job

    def _elsewhere(self, job: Job) -> MetersElsewhere | None:
        config = job.config
        if not self._meters or not config.backend_config.spans_machines:
            return None
        if not runs_here(job.machine, config.backend):
            raise ExperimentError(
                f"runners.{config.backend}: {job.machine.runners.of(config.backend)}: a model is spread over several "
                f"nodes in their own Python environments only. Set runners.{config.backend}: local on this node."
            )
        import ray

        return MetersElsewhere(ray.get_runtime_context().gcs_address, self._meters, os.getppid())

    def _prepare(self) -> None:
        with contextlib.suppress(ExperimentError):  # to run it will fail for the same
            self._launcher.prepare(self._read())

    def _run(self) -> None:
        try:
            run = self._launcher.run(self._read(), self._hear, self._interrupt)
            series = [] if run.artefacts.timeseries is None else [run.artefacts.timeseries]
            self._files = [*series, *run.artefacts.beside_timeseries]
            self._outcome = {"run": run_to_json(run, self._directory), "files": self._sizes(self._files)}
        except RunInterruptedError:
            self._outcome = {"interrupted": True, "files": self._sizes([])}
        except Exception as error:  # noqa: BLE001 (whatever it was, the driver must hear of it)
            said = error.traceback if isinstance(error, ChildFailedError) else traceback.format_exc()
            kind = error.error_type if isinstance(error, ChildFailedError) else type(error).__name__
            self._outcome = {"error_type": kind, "message": str(error), "traceback": said, "files": self._sizes([])}
        self._over.set()

    def _sizes(self, files: Sequence[Path]) -> dict[str, int]:
        """Sizes of files of the run and of what its processes said, by their names in its directory."""
        there = [path for path in (*files, *self._logs()) if path.is_file()]
        return {path.relative_to(self._directory).as_posix(): path.stat().st_size for path in there}

    def _logs(self) -> Iterator[Path]:
        return self._directory.glob("*.log")

    def _grown(self, known: Mapping[str, int]) -> Iterator[tuple[Path, int]]:
        """Logs with more in them than is known, and their sizes."""
        for path in self._logs():
            size = path.stat().st_size
            if size > known.get(path.name, 0):
                yield path, size

    def _draw(self, result: bytes) -> str:
        with tempfile.TemporaryDirectory(dir=self._directory) as name:
            place = Path(name)
            (place / RESULT_FILE).write_bytes(result)
            for file in self._files:
                (place / file.name).symlink_to(file)
            return page_of(place)

    def _hear(self, event: Event) -> None:
        line = to_line(event)
        with self._listening:
            self._events.append(line)


def _end_of(log: Path, size: int) -> LogEnd:
    with log.open("rb") as file:
        file.seek(max(0, size - END_BYTES))
        return {"size": size, "end": file.read(END_BYTES)}
