"""Jobs on a node of a Ray cluster: a launcher that talks to the agent there. Ray is handed in.

An agent takes all processors and GPUs of its node, so that Ray gives nobody else's work a place beside a measurement.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import Event, Observer
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.exceptions import ExperimentError, PreFlightError
from llenergymeasure.results.persistence import RESULT_FILE
from llenergymeasure.results.summary import one_line
from llenergymeasure.runners.child import from_line
from llenergymeasure.runners.cluster import Node, NodeLostError
from llenergymeasure.runners.job import JOB_FILE, Job, MeasuredRun, run_from_json, write_job
from llenergymeasure.runners.output import last_line_of
from llenergymeasure.runners.ray_meter import NAMESPACE
from llenergymeasure.runners.ray_node import LogEnd, NodeAgent, Outcome, failures_there
from llenergymeasure.runners.ray_worker import where_the_study_begins
from llenergymeasure.runners.supervise import POLL_INTERVAL_S, ChildFailedError, Interrupt, RunInterruptedError
from llenergymeasure.security import is_safe_path

UNREACHABLE_S: Final = 60.0
"""How long an agent may be out of reach before its node counts as lost, in seconds."""

CLEARING_S: Final = 5.0
"""How long an agent that ends may take to remove what it has left on its node, in seconds."""

RETRY_S: Final = 1.0

_AT_ONCE: Final = 4
"""Calls that an agent takes while one of them waits for news."""

_log = logging.getLogger(__name__)

_LABELS: Final = ("class_name:", "actor_id:", "pid:", "namespace:", "ip:", "name:")


@dataclass(frozen=True, slots=True)
class Member:
    """A node with all that Ray has of it: processors and GPUs."""

    node: Node
    cpus: float
    gpus: float


class RayNodeLauncher:
    """See `runners.cluster.NodeLauncher`: talks to the agent of its node."""

    def __init__(self, ray: ModuleType, member: Member) -> None:
        self._ray = ray
        self._member = member
        self._node = member.node
        self._agent: Any = None
        self._has_work = False

    def claim(self, interrupt: Interrupt) -> None:
        """Have an agent started that holds the node; waits while other work of the cluster is there."""
        self._agent = self._start(NodeAgent, self._member, where_the_study_begins())
        self._ask("ready", give_up=interrupt)

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        """What each experiment would fail for on the node, by the node's own settings; it need not be claimed."""
        sent = [config.model_dump_json(exclude_unset=True, exclude={"output_dir"}) for config in configs]
        try:
            question = remotely(self._ray, failures_there, self._node.id, where_the_study_begins(), sent)
            answers: list[list[str]] = self._ray.get(question)
        except self._ray.exceptions.RayError as error:
            raise ChildFailedError("Crash", f"{self._node.name} could not tell: {cause_of(error)}") from error
        return answers

    def prepare(self, job: Job) -> None:
        """Let the agent start the job's interpreter."""
        self._has_work = True
        self._agent.prepare.remote(_content_of(job))

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Run a job on the node; see `Launcher.run`."""
        logs: dict[str, LogEnd] = {}
        self._has_work = True
        try:
            self._ask("begin", _content_of(job))
            self._follow(observer, interrupt, logs)
            outcome: Outcome = self._ask("outcome")
            refused = {name for name, size in outcome["files"].items() if not self._fetched(name, size, job)}
        except RunInterruptedError:
            _keep_ends(logs, job)
            raise
        except NodeLostError as error:
            _keep_ends(logs, job)
            raise NodeLostError(f"{error}{_last_words(logs)}") from error
        if "run" not in outcome:
            self._ask("clear")
        return _without(refused, _run_of(outcome, job), job)

    def page(self, directory: Path) -> str | None:
        """See `NodeLauncher.page`."""
        try:
            page: str = self._ask("page", (directory / RESULT_FILE).read_bytes())
        except (ExperimentError, OSError) as error:  # whoever draws it instead says what is wrong with it
            _log.info("%s could not draw the report of %s: %s", self._node.name, directory, error)
            page = ""
        with contextlib.suppress(ExperimentError):  # a node that is lost by now: its next run will say so
            self._ask("clear")
        return page or None

    def leftovers(self) -> list[str]:
        """GPU memory that somebody left behind on the node."""
        try:
            found: list[str] = self._ask("leftovers")
        except NodeLostError:  # its next run will say so
            return []
        return found

    def discard(self) -> None:
        """End what `prepare` started."""
        if self._agent is not None:
            self._agent.clear.remote()

    def release(self, *, at_once: bool = False) -> None:
        """End the agent, and with it whatever it runs; of a run whose result nobody could keep its files go too."""
        agent, self._agent = self._agent, None
        if agent is None:
            return
        try:
            if self._has_work and not at_once:  # one that waits for its node would not answer
                self._ray.wait([agent.clear.remote()], timeout=CLEARING_S)
        finally:
            self._ray.kill(agent)

    def _follow(self, observer: Observer, interrupt: Interrupt, logs: dict[str, LogEnd]) -> None:
        """Hear of the job until there is an outcome; `logs` gets the end of what its processes say."""
        told = over = False
        while not over:
            answer = self._agent.news.remote({name: log["size"] for name, log in logs.items()})
            while not self._ray.wait([answer], timeout=POLL_INTERVAL_S)[0]:
                self._look()
                if interrupt.urgent:
                    self.release(at_once=True)
                    raise RunInterruptedError("interrupted")
                if interrupt.requested and not told:
                    self._agent.stop.remote()
                    told = True
            news = self._answer(answer, "news", {})
            logs |= news["logs"]
            for line in news["events"]:
                event = from_line(line)
                if isinstance(event, Event):
                    observer(event)
            over = news["over"]

    def _start(self, kind: type, member: Member, *arguments: Any, gpus: float | None = None, name: str = "") -> Any:
        """Have an actor started that holds a node.

        Args:
            gpus: How many of its GPUs Ray is to count as taken; `None`: all.
            name: Under which others find it; empty: nobody needs to.
        """
        options = {
            "num_cpus": member.cpus,
            "num_gpus": member.gpus if gpus is None else gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": _AT_ONCE,
            "scheduling_strategy": only_on(self._ray, member.node.id),
            **({"name": name, "namespace": NAMESPACE} if name else {}),
        }
        return self._ray.remote(kind).options(**options).remote(*arguments)

    def _look(self) -> None:
        """Raise `NodeLostError` where something that a run needs besides its agent is lost."""

    def _fetched(self, name: str, size: int, job: Job) -> bool:
        """Write a file of the run where it would be had it run here; whether the disk took it."""
        if not is_safe_path(job.work_dir, name):
            raise ExperimentError(f"{self._node.name} handed over a file outside its job's directory: {name}")
        path = job.work_dir / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while file.tell() < size:
                    part = self._ask("part", name, file.tell())
                    if not part:
                        raise ExperimentError(f"{self._node.name} handed over {file.tell()} of {size} bytes of {name}")
                    file.write(part)
        except OSError as error:
            _log.warning("%s is left out: %s", path, error.strerror or error)
            return False
        return True

    def _ask(self, method: str, *arguments: Any, give_up: Interrupt | None = None) -> Any:
        """Call a method of the agent, again while it is out of reach."""
        answer = getattr(self._agent, method).remote(*arguments)
        while not self._ray.wait([answer], timeout=POLL_INTERVAL_S)[0]:
            if give_up is not None and give_up.requested:
                raise RunInterruptedError("interrupted")
        return self._answer(answer, method, *arguments)

    def _answer(self, answer: Any, method: str, *arguments: Any) -> Any:
        """What the agent said.

        Raises:
            NodeLostError: It is gone, or out of reach for too long.
            ExperimentError: It could not do it.
        """
        exceptions = self._ray.exceptions
        deadline_s = time.monotonic() + UNREACHABLE_S
        while True:
            try:
                return self._ray.get(answer)
            except exceptions.ActorUnavailableError as error:  # the network, perhaps; or the node will be found dead
                if time.monotonic() > deadline_s:
                    raise NodeLostError(f"out of reach for {UNREACHABLE_S:.0f} s: {cause_of(error)}") from error
            except exceptions.RayTaskError as error:
                raise ChildFailedError(type(error.cause).__name__, str(error.cause), str(error)) from error
            except exceptions.RayError as error:
                raise NodeLostError(cause_of(error)) from error
            time.sleep(RETRY_S)
            answer = getattr(self._agent, method).remote(*arguments)


def _content_of(job: Job) -> bytes:
    """The job's file, as it is on one machine but for that machine's settings: the node has its own."""
    there = job.config.model_copy(update={"output_dir": None})
    write_job(replace(job, config=there, machine=UserConfig()))
    return (job.work_dir / JOB_FILE).read_bytes()


def _keep_ends(logs: Mapping[str, LogEnd], job: Job) -> None:
    """Leave what is known of a job's logs where those are that came as a whole."""
    for name, log in logs.items():
        path = job.work_dir / name
        if is_safe_path(job.work_dir, name) and not path.exists():
            left_out = log["size"] - len(log["end"])
            told = f"[… {left_out} bytes left out …]\n" if left_out else ""
            try:
                path.write_bytes(told.encode() + log["end"])
            except OSError as error:  # it must not hide why the log is not whole
                _log.warning("Could not keep %s: %s", path, error)


def _last_words(logs: Mapping[str, LogEnd]) -> str:
    """The last line that a job's processes said, as an error has it."""
    lines = [last_line_of(log["end"].decode("utf-8", "replace")) for log in logs.values()]
    return next((f" (last output: {line})" for line in reversed(lines) if line), "")


def _run_of(outcome: Outcome, job: Job) -> MeasuredRun:
    """What came of a job.

    Raises:
        LLEMError: What it failed with.
    """
    if outcome.get("interrupted"):
        raise RunInterruptedError("interrupted")
    if "run" in outcome:
        return run_from_json(MeasuredRun, outcome["run"], job.work_dir)
    if outcome["error_type"] == PreFlightError.__name__:
        raise PreFlightError.from_text(outcome["message"])
    raise ChildFailedError(outcome["error_type"], outcome["message"], outcome["traceback"])


def _without(refused: Collection[str], run: MeasuredRun, job: Job) -> MeasuredRun:
    """The run without files that the disk refused, as its own process leaves those out that its disk refuses."""
    gone = {job.work_dir / name for name in refused}

    def there(path: Path | None) -> Path | None:
        return None if path in gone else path

    files = run.artefacts
    further = tuple(path for path in files.further if path not in gone)
    return replace(run, artefacts=Artefacts(there(files.timeseries), there(files.trace), there(files.outputs), further))


def remotely(ray: ModuleType, function: Any, node_id: str, *arguments: Any) -> Any:
    """Have a function called on a node, beside whatever runs there."""
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": only_on(ray, node_id)}
    return ray.remote(function).options(**options).remote(*arguments)


def only_on(ray: ModuleType, node_id: str) -> Any:
    """Where an actor or a call may go: to this node."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)


def cause_of(error: BaseException) -> str:
    """What Ray's error comes to, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_LABELS)]
    return one_line(" ".join(told[1:] or told))[:300] or type(error).__name__
