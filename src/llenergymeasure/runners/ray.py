"""A cluster that Ray runs: who is there, and a launcher for each node. Ray is imported when one is asked for.

Where an experiment runs, how its bytes get there, who is alive and what is free is Ray's business. An agent takes all
processors and GPUs of its node, so that Ray gives nobody else's work a place beside a measurement.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.constants import VERSION
from llenergymeasure.core.progress import Event, Observer
from llenergymeasure.exceptions import ExperimentError, PreFlightError, StudyError
from llenergymeasure.results.summary import one_line
from llenergymeasure.runners.child import from_line
from llenergymeasure.runners.cluster import Node, NodeLostError
from llenergymeasure.runners.job import JOB_FILE, Job, MeasuredRun, run_from_json, write_job
from llenergymeasure.runners.ray_node import NodeAgent, Outcome, failures_there, introduce
from llenergymeasure.runners.supervise import POLL_INTERVAL_S, ChildFailedError, Interrupt, RunInterruptedError
from llenergymeasure.security import is_safe_path

INTRODUCTION_S: Final = 60.0
"""How long the first look at a cluster waits for its nodes to introduce themselves, in seconds."""

UNREACHABLE_S: Final = 60.0
"""How long an agent may be out of reach before its node counts as lost, in seconds."""

RETRY_S: Final = 1.0

KNOCK_S: Final = 10.0
"""How long a cluster's first machine may take to answer at all, in seconds."""

_AT_ONCE: Final = 4
"""Calls that an agent takes while one of them waits for news."""

_LABELS: Final = ("class_name:", "actor_id:", "pid:", "namespace:", "ip:", "name:")

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[RayCluster]:
    """Be connected to a Ray cluster for the length of a `with` block; a connection that is there already is used.

    Args:
        address: As Ray takes it: `auto`, `host:port`, `ray://host:port`.

    Raises:
        PreFlightError: Ray is missing, or there is no such cluster.
    """
    ray = _import_ray(address)
    is_own = not ray.is_initialized()
    # Ray prints what it hears of nodes to stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        if is_own:
            _connect(ray, address)
        try:
            yield RayCluster(ray, address)
        finally:
            if is_own:
                ray.shutdown()


def _import_ray(address: str) -> ModuleType:
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise PreFlightError(
            [f'--cluster {address}: needs Ray ({error}). Install it: pip install "llenergymeasure[ray]"']
        ) from error
    except Exception as error:  # one of the packages that it looks for is broken: anything can come of that
        raise PreFlightError(
            [
                f"--cluster {address}: Ray is installed and cannot be imported: {type(error).__name__}: {error}. "
                "Python shows where with: python -c 'import ray'"
            ]
        ) from error
    return ray  # type: ignore[no-any-return]


def _connect(ray: ModuleType, address: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray's own, gRPC's, and the system's
        raise PreFlightError(
            [
                f"--cluster {address}: cannot connect: {one_line(str(error))}. Is it running? On its first machine: "
                "ray start --head; on the others: ray start --address=HOST:6379"
            ]
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # Ray puts its own there


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens at an address with a port: Ray would go on trying for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


class RayCluster:
    """See `runners.cluster.Cluster`."""

    def __init__(self, ray: ModuleType, address: str) -> None:
        self._ray = ray
        self.address = address
        self._asked: dict[str, Any] = {}
        self._known: dict[str, Node] = {}
        self._resources: dict[str, tuple[float, float]] = {}
        self._refused: list[str] = []
        self._has_looked = False

    def nodes(self) -> list[Node]:
        """Those that are there and have introduced themselves; the first look waits for them.

        Raises:
            StudyError: The cluster does not answer.
        """
        try:
            listed = self._ray.nodes()
        except Exception as error:  # Ray's own, gRPC's, and the system's
            raise StudyError(
                f"the cluster at {self.address} does not answer any more: {one_line(str(error))}"
            ) from error
        entries = {entry["NodeID"]: entry for entry in listed if entry["Alive"] and _offers_work(entry)}
        names = _names(entries)
        for key in entries.keys() - self._asked.keys():
            self._asked[key] = _remotely(self._ray, introduce, key)
        waiting = {self._asked[key]: key for key in entries if key not in self._known and self._asked[key] is not None}
        if waiting:
            patience_s = 0 if self._has_looked else INTRODUCTION_S
            answered, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=patience_s)
            for answer in answered:
                key = waiting[answer]
                self._asked[key] = None
                self._hear(entries[key], names[key], answer)
        self._has_looked = True
        return sorted((self._known[key] for key in entries if key in self._known), key=lambda node: node.name)

    def refused(self) -> list[str]:
        """Why others cannot take experiments; each is told once."""
        told, self._refused = self._refused, []
        return told

    def launcher_on(self, node: Node) -> RayNodeLauncher:
        """What runs jobs on a node."""
        return RayNodeLauncher(self._ray, node, *self._resources[node.id])

    def _hear(self, entry: dict[str, Any], name: str, answer: Any) -> None:
        """Take a node's introduction, or the reason why it cannot take experiments."""
        try:
            said = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            self._refused.append(
                f"{name} takes no experiments: llenergymeasure {VERSION} does not answer there ({_cause(error)}). "
                f'Install it on every node: pip install "llenergymeasure[ray]=={VERSION}"'
            )
            return
        except self._ray.exceptions.RayError:  # it went away; if it is there after all it is asked again
            del self._asked[entry["NodeID"]]
            return
        if said["version"] != VERSION:
            self._refused.append(
                f"{name} takes no experiments: it has llenergymeasure {said['version']}, and this is {VERSION}. "
                f'Install the same release on every node: pip install "llenergymeasure[ray]=={VERSION}"'
            )
            return
        offered = entry["Resources"]
        gpus = int(offered.get("GPU", 0))
        self._resources[entry["NodeID"]] = offered["CPU"], offered.get("GPU", 0)
        self._known[entry["NodeID"]] = Node(
            id=entry["NodeID"], name=name, gpus=gpus, gpu_names=tuple(said["gpu_names"][:gpus]), cpu=said["cpu"]
        )


class RayNodeLauncher:
    """See `runners.cluster.NodeLauncher`: talks to the agent of its node.

    Args:
        cpus: All that Ray has of the node.
        gpus: Likewise.
    """

    def __init__(self, ray: ModuleType, node: Node, cpus: float, gpus: float) -> None:
        self._ray = ray
        self._node = node
        self._cpus, self._gpus = cpus, gpus
        self._agent: Any = None

    def claim(self, interrupt: Interrupt) -> None:
        """Have an agent started that holds the node; waits while other work of the cluster is there."""
        agent = self._ray.remote(NodeAgent).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_AT_ONCE,
            scheduling_strategy=_only_on(self._ray, self._node.id),
        )
        self._agent = agent.remote(os.getcwd())
        self._ask("ready", give_up=interrupt)

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        """What each experiment would fail for on the node, by the node's own settings; it need not be claimed."""
        sent = [config.model_dump_json(exclude_unset=True, exclude={"output_dir"}) for config in configs]
        try:
            answers: list[list[str]] = self._ray.get(_remotely(self._ray, failures_there, self._node.id, sent))
        except self._ray.exceptions.RayError as error:
            raise ChildFailedError("Crash", f"{self._node.name} could not tell: {_cause(error)}") from error
        return answers

    def prepare(self, job: Job) -> None:
        """Let the agent start the job's interpreter."""
        self._agent.prepare.remote(_content_of(job))

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Run a job on the node; see `Launcher.run`."""
        self._ask("begin", _content_of(job))
        told = over = False
        while not over:
            answer = self._agent.news.remote()
            while not self._ray.wait([answer], timeout=POLL_INTERVAL_S)[0]:
                if interrupt.urgent:
                    self.release()
                    raise RunInterruptedError("interrupted")
                if interrupt.requested and not told:
                    self._agent.stop.remote()
                    told = True
            news = self._answer(answer, "news")
            for line in news["events"]:
                event = from_line(line)
                if isinstance(event, Event):
                    observer(event)
            over = news["over"]
        outcome: Outcome = self._ask("outcome")
        for name, size in outcome["files"].items():
            self._fetch(name, size, job)
        self._ask("clear")
        return _run_of(outcome, job)

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

    def release(self) -> None:
        """End the agent, and with it whatever it runs."""
        agent, self._agent = self._agent, None
        if agent is not None:
            self._ray.kill(agent)

    def _fetch(self, name: str, size: int, job: Job) -> None:
        """Write a file of the run where it would be had it run here."""
        if not is_safe_path(job.work_dir, name):
            raise ExperimentError(f"{self._node.name} handed over a file outside its job's directory: {name}")
        path = job.work_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while file.tell() < size:
                part = self._ask("part", name, file.tell())
                if not part:
                    raise ExperimentError(f"{self._node.name} handed over {file.tell()} of {size} bytes of {name}")
                file.write(part)

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
                    raise NodeLostError(f"out of reach for {UNREACHABLE_S:.0f} s: {_cause(error)}") from error
            except exceptions.RayTaskError as error:
                raise ChildFailedError(type(error.cause).__name__, str(error.cause), str(error)) from error
            except exceptions.RayError as error:
                raise NodeLostError(_cause(error)) from error
            time.sleep(RETRY_S)
            answer = getattr(self._agent, method).remote(*arguments)


def _content_of(job: Job) -> bytes:
    """The job's file, as it is on one machine but for that machine's settings: the node has its own."""
    there = job.config.model_copy(update={"output_dir": None})
    write_job(replace(job, config=there, machine=UserConfig()))
    return (job.work_dir / JOB_FILE).read_bytes()


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


def _offers_work(entry: dict[str, Any]) -> bool:
    """Whether a node has a processor to give; a head that was started with none is there to direct only."""
    return bool(entry["Resources"].get("CPU", 0) >= 1)


def _names(entries: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What people call the nodes, by id: the name that Ray was given, else the host's; alike ones are told apart."""
    names = {
        key: entry["NodeManagerHostname"]
        if entry.get("NodeName", entry["NodeManagerAddress"]) == entry["NodeManagerAddress"]
        else entry["NodeName"]
        for key, entry in entries.items()
    }
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else f"{name}-{key[:8]}" for key, name in names.items()}


def _remotely(ray: ModuleType, function: Any, node_id: str, *arguments: Any) -> Any:
    """Have a function called on a node, beside whatever runs there."""
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": _only_on(ray, node_id)}
    return ray.remote(function).options(**options).remote(*arguments)


def _only_on(ray: ModuleType, node_id: str) -> Any:
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)


def _cause(error: BaseException) -> str:
    """What Ray's error comes to, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_LABELS)]
    return one_line(" ".join(told[1:] or told))[:300] or type(error).__name__
