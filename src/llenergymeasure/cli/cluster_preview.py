"""What a dry run says of a cluster: its nodes, and how long a study takes on them at the least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from llenergymeasure.config.models import StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.domain.readable import counted
from llenergymeasure.results.summary import duration
from llenergymeasure.runners.cluster import Node
from llenergymeasure.study.gaps import gaps_of
from llenergymeasure.study.placement import Placement, forecast
from llenergymeasure.study.plan import PlannedRun, known_waits


def cluster_lines(
    study: StudyConfig, left: Sequence[PlannedRun], machine: UserConfig, nodes: Sequence[Node]
) -> Iterator[str]:
    """The nodes, alike ones together, and the shortest time that the runs can take on them."""
    kinds = Counter(node.describe().partition(": ")[2] for node in nodes)
    told = "; ".join(f"{count} × {kind}" for kind, count in kinds.items())
    yield f"Cluster        experiments on {counted(len(nodes), 'node')}: {told or 'none'}"
    if nodes and left:
        yield f"               at least {duration(shortest_s(study, left, machine, nodes))} of gaps and waits there"


def shortest_s(
    study: StudyConfig, left: Sequence[PlannedRun], machine: UserConfig, nodes: Sequence[Node], run_s: float = 0.0
) -> float:
    """How long the gaps and waits of these runs take on these nodes, in seconds.

    Args:
        run_s: What each run takes besides them, in seconds.
    """
    steps = forecast(
        Placement(left, machine),
        nodes,
        gaps_of(study.execution, machine),
        lambda run, node: run_s + sum(seconds for _, seconds in known_waits(run.config)),
    )
    return max((step.end_s for step in steps), default=0.0)
