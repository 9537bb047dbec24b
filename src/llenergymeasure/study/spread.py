"""A study over the nodes of a cluster: a worker on each, in a thread of its own, and nodes that come and go.

Whoever is free takes the next run that suits its node. A run whose node is lost is tried once elsewhere; where no node
is left that could go on, the study waits for one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from llenergymeasure.core.host.threads import started
from llenergymeasure.exceptions import StudyError
from llenergymeasure.results.summary import duration
from llenergymeasure.runners.cluster import Cluster, Node, NodeLauncher, NodeLostError
from llenergymeasure.runners.supervise import POLL_INTERVAL_S, Interrupt, RunInterruptedError
from llenergymeasure.study.ledger import Ledger
from llenergymeasure.study.placement import MOST_LISTED, Placement
from llenergymeasure.study.plan import PlannedRun, StudyWarning
from llenergymeasure.study.worker import Site, Terms, Worker


@dataclass(frozen=True, slots=True)
class Watch:
    """How a cluster is watched, in seconds.

    Args:
        look_s: Time between two looks at which nodes there are.
        tell_s: How long nothing can go on before it is said.
        retry_s: How long a node that was lost and is there again is left alone.
    """

    look_s: float = 5.0
    tell_s: float = 10.0
    retry_s: float = 30.0


class Spread:
    """Does the runs of a placement on a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        placement: Placement,
        terms: Terms,
        ledger: Ledger,
        interrupt: Interrupt,
        watch: Watch = Watch(),
    ) -> None:
        self._cluster = cluster
        self._placement = placement
        self._terms = terms
        self._ledger = ledger
        self._user = interrupt
        self._watch = watch
        self._patience_s = terms.machine.cluster.max_wait_seconds
        self._stop = Interrupt()
        self._changed = threading.Condition()
        self._nodes: dict[str, Node] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._idle: set[str] = set()
        self._not_before_s: dict[str, float] = {}
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do every run.

        Raises:
            RunInterruptedError: The user asked to stop; all that ran has been torn down.
            StudyError: Too many runs failed one after the other, or no node came that could go on.
            PersistenceError: Nothing can be written any more.
        """
        try:
            self._see_through()
        finally:
            self._end()
        if self._error is not None:
            raise self._error
        if self._user.requested and self._placement.left:
            raise RunInterruptedError("interrupted")

    def _see_through(self) -> None:
        clock = self._terms.clock
        looked_s, stalled_since_s, told = None, None, False
        while self._placement.left and self._error is None and not self._user.requested:
            if looked_s is None or clock.now() - looked_s >= self._watch.look_s:
                self._look()
                looked_s = clock.now()
            with self._changed:
                self._changed.wait(POLL_INTERVAL_S)
            if not self._is_stalled():
                stalled_since_s, told = None, False
            elif stalled_since_s is None:
                stalled_since_s = clock.now()
            elif not told and clock.now() - stalled_since_s >= self._watch.tell_s:
                self._ledger.tell(StudyWarning(self._waiting()))
                told = True
            elif clock.now() - stalled_since_s > self._patience_s:
                raise StudyError(
                    f"no node came for {duration(self._patience_s)} that could go on with the study "
                    "(cluster.max_wait_seconds of the user settings)"
                )

    def _is_stalled(self) -> bool:
        """Whether nobody has anything to do, and something is left; who waits for a busy node has nothing to do."""
        with self._changed:
            return self._placement.left > 0 and len(self._idle) == len(self._threads)

    def _look(self) -> None:
        """Put a worker on every node that is there and has none."""
        present = {node.id: node for node in self._cluster.nodes()}
        for reason in self._cluster.refused():
            self._ledger.tell(StudyWarning(reason))
        now_s = self._terms.clock.now()
        with self._changed:
            self._nodes = present
            new = [node for key, node in present.items() if key not in self._threads]
            for node in new:
                if now_s >= self._not_before_s.get(node.id, now_s):
                    thread = threading.Thread(target=self._work, args=(node,), name=f"llem-{node.name}", daemon=True)
                    self._threads[node.id] = started(thread)
            self._changed.notify_all()

    def _waiting(self) -> str:
        nodes = list(self._nodes.values())
        there = [node.describe() for node in nodes[:MOST_LISTED]]
        there += [f"and {len(nodes) - MOST_LISTED} more"] if len(nodes) > MOST_LISTED else []
        return (
            f"No node of the cluster is free for the {self._placement.left} runs that are left "
            f"(nodes: {'; '.join(there) or 'none'}). Waiting for one, {duration(self._patience_s)} at most "
            "(cluster.max_wait_seconds of the user settings). "
            "Ctrl-C ends the study; --resume goes on with it."
        )

    def _work(self, node: Node) -> None:
        """One node's thread: claim it, then do what it may do."""
        launcher = self._cluster.launcher_on(node)
        site = Site(launcher, launcher.leftovers, launcher.page, node.name)
        worker = Worker(site, self._terms, self._ledger, self._stop)
        try:
            self._work_with(launcher, worker, node)
        except NodeLostError as error:
            self._ledger.tell(StudyWarning(f"{node.name} is lost: {error}"))
        except RunInterruptedError:
            pass  # whoever asked knows
        except BaseException as error:  # noqa: BLE001 (the study ends by it, in the thread that it was begun in)
            with self._changed:
                self._error = self._error or error
        finally:
            self._give_back(launcher, node)
            with self._changed:
                self._not_before_s[node.id] = self._terms.clock.now() + self._watch.retry_s
                self._threads.pop(node.id, None)
                self._idle.discard(node.id)
                self._changed.notify_all()

    def _give_back(self, launcher: NodeLauncher, node: Node) -> None:
        try:
            launcher.release()
        except Exception as error:  # noqa: BLE001 (the study goes on or ends without it, whatever it was)
            self._ledger.tell(StudyWarning(f"{node.name} could not be given back: {error}"))

    def _work_with(self, launcher: NodeLauncher, worker: Worker, node: Node) -> None:
        with self._changed:
            self._idle.add(node.id)
        launcher.claim(self._stop)
        with self._changed:
            self._idle.discard(node.id)
        while (run := self._next(node)) is not None:
            last_try = self._placement.was_lost(run)
            try:
                measured = worker.do(run, last_try=last_try)
            except NodeLostError as error:
                with self._changed:
                    if last_try:
                        self._placement.end(run, measured=False)
                    else:
                        self._placement.lose(run, node)
                    self._changed.notify_all()
                what = "has failed" if last_try else "is tried once more"
                raise NodeLostError(f"{error} {run.title}, cycle {run.cycle}, was running there and {what}.") from error
            with self._changed:
                self._placement.end(run, measured=measured)
                self._changed.notify_all()

    def _next(self, node: Node) -> PlannedRun | None:
        """The next run for a node, as soon as there is one; `None`: the study is over."""
        with self._changed:
            while self._placement.left and not self._stop.requested and self._error is None:
                if (run := self._placement.take(node, self._nodes.values())) is not None:
                    self._idle.discard(node.id)
                    return run
                self._idle.add(node.id)
                self._changed.wait()
        return None

    def _end(self) -> None:
        """Let every worker end: whoever has a run still, because somebody wants to stop, or waits for a busy node."""
        while True:
            for _ in range(1 + int(self._user.urgent) - int(self._stop.requested) - int(self._stop.urgent)):
                self._stop.request()
            with self._changed:
                self._changed.notify_all()
                if not self._threads:
                    return
                self._changed.wait(POLL_INTERVAL_S)
