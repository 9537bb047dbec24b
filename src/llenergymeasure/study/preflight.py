"""Can this study run here? Asked once, before anything starts, in the words of the runs' own pre-flight.

A study whose every configuration would fail is refused; of one that can do a part of its work, the rest is told. A run
asks in a process of its own, which engines may be imported into; a dry run, which measures nothing, in this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from llenergymeasure.config.models import ExperimentConfig, study_titles
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.exceptions import PreFlightError
from llenergymeasure.results.summary import one_line
from llenergymeasure.runners.cluster import Cluster, Node
from llenergymeasure.runners.inquiry import failures_here
from llenergymeasure.runners.isolated import ProcessLauncher, asked_in_groups
from llenergymeasure.runners.job import LOCAL_RUNNER
from llenergymeasure.runners.launchers import LAUNCHERS, ChosenLauncher
from llenergymeasure.runners.supervise import ChildFailedError
from llenergymeasure.study.placement import demand_of, nothing_suits, places

MAX_CHECKED: Final = 20
"""Configurations that are looked at; each takes a part of a second."""


class Outlook(NamedTuple):
    """What to know before a study begins, one sentence each."""

    failing: list[str]
    """Why some of its runs will fail; the others will not."""
    notes: list[str]


StudyCheck = Callable[[Sequence[ExperimentConfig], UserConfig], Outlook]
"""What to know before a study of these configurations begins; raises `PreFlightError` where it need not."""

Inquiry = Callable[[Sequence[ExperimentConfig], UserConfig], list[list[str]]]
"""What each of some configurations would fail for, see `Launcher.failures`."""


def check_here(configs: Sequence[ExperimentConfig], machine: UserConfig) -> Outlook:
    """What some of these configurations fail for, found out in this process, or by their runners.

    Raises:
        PreFlightError: None of them can run here; the reasons that all share come first.
    """

    class InThisProcess(ProcessLauncher):
        def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
            return [failures_here(config, machine) for config in configs]

    return _verdict_of(configs, machine, ChosenLauncher({**LAUNCHERS, LOCAL_RUNNER: InThisProcess}).failures)


def check_in_child(configs: Sequence[ExperimentConfig], machine: UserConfig) -> Outlook:
    """As `check_here`, found out in processes that are gone afterwards.

    Raises:
        PreFlightError: None of them can run here; the reasons that all share come first.
        PersistenceError: There is no room for temporary files.
    """
    return _verdict_of(configs, machine, ChosenLauncher().failures)


def check_on(cluster: Cluster) -> StudyCheck:
    """As `check_here`, found out on nodes of a cluster, each configuration on the first that could run it."""

    def check(configs: Sequence[ExperimentConfig], machine: UserConfig) -> Outlook:
        where = places(cluster, configs, machine)
        nodes, refused = where.nodes(), where.refused()

        def suitable(config: ExperimentConfig) -> Node | None:
            demand = demand_of(config, machine)
            return next((node for node in nodes if node.suits(demand, machine.cluster.hardware)), None)

        without = [
            nothing_suits(title, config, cluster.nodes(), machine)
            for title, config in zip(study_titles(configs), configs, strict=True)
            if suitable(config) is None
        ]
        if without:
            raise PreFlightError([*without[:MAX_CHECKED], *refused])

        def failures(asked: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
            def ask(alike: list[ExperimentConfig]) -> list[list[str]]:
                node = suitable(alike[0])
                return [] if node is None else where.launcher_on(node).failures(alike, machine)

            return asked_in_groups(asked, suitable, ask)

        found = _verdict_of(configs, machine, failures)
        return Outlook(found.failing, [*refused, *found.notes])

    return check


def _verdict_of(configs: Sequence[ExperimentConfig], machine: UserConfig, failures_of: Inquiry) -> Outlook:
    unknown: list[str] = []

    def ask(alike: list[ExperimentConfig]) -> list[list[str]]:
        try:
            return failures_of(alike, machine)
        except ChildFailedError as error:  # its runs will tell
            runner = machine.runners.of(alike[0].backend)
            unknown.append(f"Whether experiments can run with the runner {runner} could not be found out: {error}")
            return [[] for _ in alike]

    found = asked_in_groups(_chosen(configs), lambda config: machine.runners.of(config.backend), ask)
    return Outlook(_verdict(configs, found), unknown)


def _chosen(configs: Sequence[ExperimentConfig]) -> list[ExperimentConfig]:
    """The first configuration of each engine, model and data set, then others, `MAX_CHECKED` at most."""
    kinds = [(config.backend, config.model, str(config.dataset)) for config in configs]
    order = sorted(range(len(configs)), key=lambda index: (kinds.index(kinds[index]) != index, index))
    return [configs[index] for index in order[:MAX_CHECKED]]


def _verdict(configs: Sequence[ExperimentConfig], failures: Sequence[Sequence[str]]) -> list[str]:
    """See `check_here`; `failures` are those of the chosen configurations."""
    shared = [text for text in (failures[0] if failures else ()) if all(text in others for others in failures)]
    chosen = _chosen(configs)
    own = [
        (title, text)
        for title, texts in zip(study_titles(chosen), failures, strict=True)
        for text in texts
        if text not in shared
    ]
    if shared or (chosen and all(failures) and len(chosen) == len(configs)):
        raise PreFlightError([*shared, *(f"{title}: {text}" for title, text in own)])
    return [f"{title} cannot run here: {one_line(text)}" for title, text in own]
