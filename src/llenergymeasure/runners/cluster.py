"""What a study asks of a cluster: its machines, and a runner on each. Nothing here knows which cluster it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llenergymeasure.domain.environment import hardware_kind
from llenergymeasure.exceptions import ExperimentError
from llenergymeasure.runners.isolated import Launcher
from llenergymeasure.runners.supervise import Interrupt


@dataclass(frozen=True, slots=True)
class Demand:
    """What an experiment needs of a machine.

    Args:
        gpus: How many at the least; 0: it runs without one too.
        on_cpu: Whether it leaves GPUs alone.
    """

    gpus: int
    on_cpu: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster.

    Args:
        id: The cluster's own name for it.
        name: What people call it; no other node's.
        gpus: How many the cluster has of it to give.
        gpu_names: Their marketing names, in order; empty: no driver tells them.
        cpu: Model of its processor; `None`: not told.
    """

    id: str
    name: str
    gpus: int = 0
    gpu_names: tuple[str, ...] = ()
    cpu: str | None = None

    def hardware(self, demand: Demand) -> str:
        """The kind of hardware that such an experiment would be measured on here."""
        used = () if demand.on_cpu else self.gpu_names[: max(demand.gpus, 1)]
        return hardware_kind(used, self.cpu)

    def suits(self, demand: Demand, allowed: Sequence[str] | None) -> bool:
        """Whether such an experiment can run here.

        Args:
            allowed: Names of the GPUs that may be used, or parts of them; `None`: any.
        """
        names = self.gpu_names or ("",)
        kind_is_allowed = allowed is None or all(
            any(wanted.casefold() in name.casefold() for wanted in allowed) for name in names
        )
        return self.gpus >= demand.gpus and kind_is_allowed

    def describe(self) -> str:
        """The node in a few words: `gpu-7: 8 × NVIDIA H100`."""
        known = ", ".join(f"{self.gpu_names.count(name)} × {name}" for name in dict.fromkeys(self.gpu_names))
        gpus = known or (f"{self.gpus} × GPU of unknown name" if self.gpus else "no GPU")
        return f"{self.name}: {gpus}"


class NodeLostError(ExperimentError):
    """A node, or what ran there for this study, is gone; the experiment itself did nothing wrong that is known."""


class NodeLauncher(Launcher, Protocol):
    """Runs jobs on one node, one at a time; see `Launcher`. `run` raises `NodeLostError` where the node is lost."""

    def claim(self, interrupt: Interrupt) -> None:
        """Wait until the node is there for this study alone, or `interrupt` is requested.

        Raises:
            NodeLostError: It cannot be had.
        """

    def page(self, directory: Path) -> str | None:
        """The report of the last run's result, drawn on the node; until then the node keeps the files of the run.

        Args:
            directory: Where the result has been saved.

        Returns:
            `None`: it cannot be drawn there, or the node is lost.
        """

    def leftovers(self) -> list[str]:
        """GPUs of the node with memory in use while no experiment runs, one sentence each; none where it is lost."""

    def release(self) -> None:
        """Give the node back, and end what runs there; safe to call at any time."""


class Cluster(Protocol):
    """Machines that experiments can be sent to."""

    def nodes(self) -> list[Node]:
        """Those that are there now and can take experiments.

        Raises:
            StudyError: Nobody can tell any more.
        """

    def refused(self) -> list[str]:
        """Why others that are there cannot, one sentence each; every reason is told once."""

    def launcher_on(self, node: Node) -> NodeLauncher:
        """What runs jobs on a node, not yet claimed."""

    def together(self, gpus: int, allowed: Sequence[str] | None) -> Cluster:
        """The nodes with one kind of GPU as one node, for engines that spread one model over several.

        Args:
            gpus: With fewer there is no such node.
            allowed: See `Node.suits`.
        """
