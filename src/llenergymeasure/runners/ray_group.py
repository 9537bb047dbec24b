"""The nodes of one kind of a Ray cluster as one place, for an engine that spreads one model over several nodes.

    driver ─┬─ agent on the first node ── job ── engine, whose Ray workers are on all nodes
            └─ a meter on each further one

Agent and meters take the processors of their nodes and leave the GPUs to the engine, in Ray's books.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol
from uuid import uuid4

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.energy.gpu_energy import recompute_energy
from llenergymeasure.core.progress import Observer
from llenergymeasure.exceptions import ExperimentError, LLEMError
from llenergymeasure.runners.cluster import Demand, Node, NodeLostError
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.ray_launcher import Member, RayNodeLauncher, cause_of
from llenergymeasure.runners.ray_meter import NodeMeter
from llenergymeasure.runners.ray_node import NodeAgent
from llenergymeasure.runners.ray_worker import where_the_study_begins
from llenergymeasure.runners.supervise import POLL_INTERVAL_S, Interrupt, RunInterruptedError


class Nodes(Protocol):
    """The part of a cluster that a group is made of."""

    def nodes(self) -> list[Node]:
        """See `Cluster`."""

    def refused(self) -> list[str]:
        """See `Cluster`."""


class RayGroup:
    """A `Cluster` with one node, made of all those of the kind of GPU that there is most of; the same while all live.

    Args:
        gpus: With fewer there is no such node.
        allowed: See `Node.suits`.
    """

    def __init__(
        self,
        ray: ModuleType,
        cluster: Nodes,
        member_of: Callable[[Node], Member],
        gpus: int,
        allowed: Sequence[str] | None,
    ) -> None:
        self._ray = ray
        self._cluster = cluster
        self._member_of = member_of
        self._gpus = gpus
        self._allowed = allowed
        self._members: list[Node] = []
        self._made_of: dict[str, list[Node]] = {}

    def nodes(self) -> list[Node]:
        """The one, or none."""
        there = {node.id: node for node in self._cluster.nodes()}
        if not self._members or not all(node.id in there for node in self._members):
            self._members = _most_alike([node for node in there.values() if node.suits(Demand(1), self._allowed)])
        members = self._members
        if sum(node.gpus for node in members) < self._gpus:
            self._members = []
            return []
        whole = Node(
            id="+".join(node.id for node in members),
            name="+".join(node.name for node in members),
            gpus=sum(node.gpus for node in members),
            gpu_names=tuple(name for node in members for name in node.gpu_names),
            cpu=members[0].cpu,
        )
        self._made_of[whole.id] = members
        return [whole]

    def refused(self) -> list[str]:
        """See `Cluster.refused`."""
        return self._cluster.refused()

    def launcher_on(self, node: Node) -> RayGroupLauncher:
        """What runs jobs on them."""
        return RayGroupLauncher(self._ray, node, [self._member_of(member) for member in self._made_of[node.id]])

    def together(self, gpus: int, allowed: Sequence[str] | None) -> RayGroup:
        """It is together already."""
        return self


def _most_alike(nodes: Sequence[Node]) -> list[Node]:
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node.hardware(Demand(1)), []).append(node)
    return max(kinds.values(), key=lambda alike: sum(node.gpus for node in alike), default=[])


class RayGroupLauncher(RayNodeLauncher):
    """See `runners.cluster.NodeLauncher`: jobs run on the first of several nodes, and all of them are metered."""

    def __init__(self, ray: ModuleType, whole: Node, members: Sequence[Member]) -> None:
        super().__init__(ray, members[0])
        self._whole = whole
        self._others = members[1:]
        self._meters: dict[str, Any] = {}
        self._watches: dict[Any, str] = {}

    def claim(self, interrupt: Interrupt) -> None:
        """Have a meter started on each further node, then the agent on the first."""
        names = {member.node.name: f"meter-{uuid4().hex}" for member in self._others}
        for member in self._others:
            node = member.node.name
            self._meters[node] = self._start(NodeMeter, member, gpus=0, name=names[node])
        self._watches = {meter.watch.remote(): node for node, meter in self._meters.items()}
        for meter in self._meters.values():
            started = meter.now.remote()
            while not self._ray.wait([started], timeout=POLL_INTERVAL_S)[0]:
                if interrupt.requested:
                    raise RunInterruptedError("interrupted")
        self._look()
        self._agent = self._start(NodeAgent, self._member, where_the_study_begins(), names, gpus=0)
        self._ask("ready", give_up=interrupt)

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        """What each would fail for on the first node; what one on several fails for is seen when it begins."""
        here = [config for config in configs if not config.backend_config.spans_machines]
        found = iter(super().failures(here, machine) if here else [])
        return [[] if config.backend_config.spans_machines else next(found) for config in configs]

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Run a job; its energy is computed once more here, from the raw readings of all nodes."""
        try:
            measured = super().run(job, observer, interrupt)
        except NodeLostError:
            raise
        except LLEMError:
            self._look()  # whatever went wrong did so because a node went
            raise
        trace, energy_j = measured.artefacts.trace, measured.result.total_energy_j
        if energy_j is None:
            self._look()  # it is measured once more, rather than kept without the joules of a node that went
        if trace is not None and (again_j := recompute_energy(trace).total_j) != energy_j:
            raise ExperimentError(f"the run's energy is {energy_j} J, and its raw readings come to {again_j} J")
        return measured

    def leftovers(self) -> list[str]:
        """GPU memory that somebody left behind on any of them."""
        found = super().leftovers()
        for meter in self._meters.values():
            try:
                found += self._ray.get(meter.leftovers.remote())
            except self._ray.exceptions.RayError:  # its next run will say so
                return found
        return found

    def release(self, *, at_once: bool = False) -> None:
        """End the agent, and with it whatever it runs, and the meters."""
        try:
            super().release(at_once=at_once)
        finally:
            meters, self._meters, self._watches = self._meters, {}, {}
            for meter in meters.values():
                self._ray.kill(meter)

    def _look(self) -> None:
        gone, _ = self._ray.wait(list(self._watches), timeout=0) if self._watches else ([], [])
        for watch in gone:
            node = self._watches[watch]
            try:
                self._ray.get(watch)
            except self._ray.exceptions.RayError as error:
                raise NodeLostError(f"of {self._whole.name}, {node} is lost: {cause_of(error)}") from error
