"""A cluster without machines: nodes by a list, and launchers that do as a script says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import Observer
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.runners.cluster import Node
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.supervise import Interrupt
from study_fakes import ENVIRONMENT, result_of

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


def node(name: str, gpus: int = 1, gpu: str = H100, cpu: str = "EPYC") -> Node:
    return Node(id=name, name=name, gpus=gpus, gpu_names=(gpu,) * gpus, cpu=cpu)


Act = Callable[[Node, Job, Interrupt], Any]
"""What happens when a job runs on a node, before it has its result; raises what it fails with."""


@dataclass
class FakeLauncher:
    cluster: FakeCluster
    node: Node

    def claim(self, interrupt: Interrupt) -> None:
        self.cluster.on_claim(self.node, interrupt)

    def leftovers(self) -> list[str]:
        return []

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        self.cluster.asked += [(self.node.name, config.model) for config in configs]
        return [self.cluster.failures.get(config.model, []) for config in configs]

    def prepare(self, job: Job) -> None:
        pass

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        with self.cluster.lock:
            self.cluster.begun.append((self.node.name, job.config.model))
        self.cluster.act(self.node, job, interrupt)
        environment = ENVIRONMENT.model_copy(update={"gpu_names": list(self.node.gpu_names)})
        return MeasuredRun(result_of(job.config, environment_snapshot=environment), Artefacts(), job.baselines)

    def page(self, directory: Path) -> str | None:
        return self.cluster.draw(self.node, directory)

    def discard(self) -> None:
        pass

    def release(self) -> None:
        with self.cluster.lock:
            self.cluster.released.append(self.node.name)
        self.cluster.on_release(self.node)


@dataclass
class FakeCluster:
    """Its nodes may be changed at any time."""

    there: list[Node]
    act: Act = field(default=lambda node, job, interrupt: None)
    draw: Callable[[Node, Path], str | None] = field(default=lambda node, directory: None)
    on_claim: Callable[[Node, Interrupt], None] = field(default=lambda node, interrupt: None)
    on_release: Callable[[Node], None] = field(default=lambda node: None)
    failures: dict[str, list[str]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    begun: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def nodes(self) -> list[Node]:
        return list(self.there)

    def refused(self) -> list[str]:
        told, self.reasons = self.reasons, []
        return told

    def launcher_on(self, node: Node) -> FakeLauncher:
        return FakeLauncher(self, node)

    @contextmanager
    def connect(self, address: str) -> Iterator[FakeCluster]:
        self.addresses.append(address)
        yield self
