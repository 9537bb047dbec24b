"""Which node gets which run: arithmetic on what is left, which knows neither threads nor time nor the cluster.

    queues by what is needed and on which kind of hardware ── take(node) ──▶ a run ──┬─ end
                      ▲                                                             └─ lose ─▶ once more, elsewhere

The first placement of a configuration decides the kind of hardware for its further cycles: no average may run over
unlike hardware.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.domain.readable import counted
from llenergymeasure.runners.cluster import Cluster, Demand, Node
from llenergymeasure.runners.launchers import device_choice_of
from llenergymeasure.study.gaps import Gaps
from llenergymeasure.study.plan import PlannedRun, RunKey

MOST_LISTED: Final = 20
"""Nodes that a message lists."""


def demand_of(config: ExperimentConfig, machine: UserConfig) -> Demand:
    """What an experiment needs of a node."""
    device = device_choice_of(config, machine)
    if device in ("cpu", "auto"):
        return Demand(0, on_cpu=device == "cpu")
    return Demand(config.backend_config.gpu_count(1))


def places(cluster: Cluster, configs: Iterable[ExperimentConfig], machine: UserConfig) -> Cluster:
    """The cluster node by node; all together where an experiment needs several nodes, for then they run in turn."""
    spanning = (demand_of(config, machine).gpus for config in configs if config.backend_config.spans_machines)
    wanted = max(spanning, default=0)
    fits = not wanted or any(node.gpus >= wanted for node in cluster.nodes())
    return cluster if fits else cluster.together(wanted, machine.cluster.hardware)


class Placement:
    """What is left of a study, and who may take it. Each step costs about as much in a large study as in a small one.

    Args:
        runs: Those that are left, in order of execution.
        hardware: Kind of hardware of results that are there already, by configuration hash.
    """

    def __init__(
        self, runs: Sequence[PlannedRun], machine: UserConfig, hardware: Mapping[str, str] | None = None
    ) -> None:
        self.left = len(runs)
        self._allowed = machine.cluster.hardware
        self._demands: dict[str, Demand] = {}
        self._waiting: dict[str, deque[PlannedRun]] = {}
        for run in runs:
            if run.config_hash not in self._demands:
                self._demands[run.config_hash] = demand_of(run.config, machine)
            self._waiting.setdefault(run.config_hash, deque()).append(run)
        self._kinds = {key: kind for key, kind in (hardware or {}).items() if key in self._demands}
        self._measured = set(self._kinds)
        self._in_flight: Counter[str] = Counter()
        self._again: list[tuple[PlannedRun, Node]] = []
        self._lost: set[RunKey] = set()
        self._queues: dict[tuple[Demand, str | None], list[tuple[int, str]]] = {}
        for config_hash in self._waiting:
            self._enqueue(config_hash)

    def take(self, node: Node, others: Collection[Node] = ()) -> PlannedRun | None:
        """The next run for a node that is free; `None`: there is none for it now.

        Args:
            others: The other nodes that are there, of which one may have to do what was lost on this one.
        """
        for index, (run, lost_on) in enumerate(self._again):
            elsewhere = any(other.id != lost_on.id and self._may_take(other, run) for other in others)
            if self._may_take(node, run) and not (node.id == lost_on.id and elsewhere):
                del self._again[index]
                return self._taken(run, node)
        heads = (self._head(key) for key in list(self._queues) if self._suits(node, *key))
        position_and_hash = min((head for head in heads if head is not None), default=None)
        if position_and_hash is None:
            return None
        return self._taken(self._waiting[position_and_hash[1]].popleft(), node)

    def end(self, run: PlannedRun, *, measured: bool) -> None:
        """A run has a result, or none and will not be tried again."""
        self.left -= 1
        self._in_flight[run.config_hash] -= 1
        if measured:
            self._measured.add(run.config_hash)
        else:
            self._forget_kind(run.config_hash)

    def was_lost(self, run: PlannedRun) -> bool:
        """Whether a node was lost with this run before; it is tried once more only."""
        return run.key in self._lost

    def lose(self, run: PlannedRun, node: Node) -> None:
        """A run's node was lost; it is tried once more, elsewhere if there is an elsewhere."""
        self._lost.add(run.key)
        self._in_flight[run.config_hash] -= 1
        self._again.append((run, node))
        self._forget_kind(run.config_hash)

    def _taken(self, run: PlannedRun, node: Node) -> PlannedRun:
        self._in_flight[run.config_hash] += 1
        self._kinds.setdefault(run.config_hash, node.hardware(self._demands[run.config_hash]))
        self._enqueue(run.config_hash)
        return run

    def _forget_kind(self, config_hash: str) -> None:
        """Let a configuration that has no result, and nothing under way, go to another kind of hardware."""
        if config_hash not in self._measured and not self._in_flight[config_hash]:
            self._kinds.pop(config_hash, None)
            self._enqueue(config_hash)

    def _enqueue(self, config_hash: str) -> None:
        if self._waiting[config_hash]:
            key = self._demands[config_hash], self._kinds.get(config_hash)
            heapq.heappush(self._queues.setdefault(key, []), (self._waiting[config_hash][0].position, config_hash))

    def _head(self, key: tuple[Demand, str | None]) -> tuple[int, str] | None:
        """The first entry of a queue that still holds: one is left behind where a configuration has moved on."""
        queue = self._queues[key]
        while queue:
            position, config_hash = queue[0]
            waiting = self._waiting[config_hash]
            if waiting and waiting[0].position == position and self._kinds.get(config_hash) == key[1]:
                return queue[0]
            heapq.heappop(queue)
        del self._queues[key]
        return None

    def _suits(self, node: Node, demand: Demand, kind: str | None) -> bool:
        return node.suits(demand, self._allowed) and kind in (None, node.hardware(demand))

    def _may_take(self, node: Node, run: PlannedRun) -> bool:
        return self._suits(node, self._demands[run.config_hash], self._kinds.get(run.config_hash))


def nothing_suits(title: str, config: ExperimentConfig, nodes: Sequence[Node], machine: UserConfig) -> str:
    """That no node can take an experiment, what it asks for, and what there is."""
    demand = demand_of(config, machine)
    where = "on nodes of one kind" if config.backend_config.spans_machines else "on one node"
    wanted = f"{counted(demand.gpus, 'GPU')} {where}" if demand.gpus else "a node"
    if machine.cluster.hardware is not None:
        wanted += f" of the kind that cluster.hardware names ({', '.join(machine.cluster.hardware)})"
    there = [node.describe() for node in nodes[:MOST_LISTED]]
    there += [f"and {len(nodes) - MOST_LISTED} more"] if len(nodes) > MOST_LISTED else []
    return f"{title} asks for {wanted}, and the cluster has {'; '.join(there) or 'no node that takes experiments'}"


@dataclass(frozen=True, slots=True)
class Step:
    """A run of a forecast: where, and from when to when, in seconds from its start."""

    run: PlannedRun
    node: Node
    start_s: float
    end_s: float


def forecast(
    placement: Placement, nodes: Sequence[Node], gaps: Gaps, duration_s: Callable[[PlannedRun, Node], float]
) -> Iterator[Step]:
    """The runs of a study on these nodes as they end, if nothing goes wrong; uses the placement up.

    Args:
        duration_s: How long a run takes on a node, in seconds.
    """
    working: list[tuple[float, int, Step]] = []

    def begin(index: int, now_s: float, previous: PlannedRun | None) -> None:
        run = placement.take(nodes[index])
        if run is not None:
            start_s = now_s + (gaps.between(previous, run)[1] if previous is not None else 0.0)
            step = Step(run, nodes[index], start_s, start_s + duration_s(run, nodes[index]))
            heapq.heappush(working, (step.end_s, index, step))

    for index in range(len(nodes)):
        begin(index, 0.0, None)
    while working:
        _, index, step = heapq.heappop(working)
        placement.end(step.run, measured=True)
        yield step
        begin(index, step.end_s, step.run)
