"""Can this study run here? Asked once, before anything starts, in the words of the runs' own pre-flight.

A study whose every configuration would fail is refused; of one that can do a part of its work, the rest is told. A run
asks in a process of its own, which engines may be imported into; a dry run, which measures nothing, in this one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from llenergymeasure.config.models import ExperimentConfig, study_titles
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.registry import preload_modules
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.preflight import run_preflight
from llenergymeasure.exceptions import PersistenceError, PreFlightError
from llenergymeasure.results.summary import one_line
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.local import energy_backend_name, engine_or_reason
from llenergymeasure.runners.process import ChildTask
from llenergymeasure.runners.supervise import ChildFailedError, ChildGroup, Interrupt, Patience

MAX_CHECKED: Final = 20
"""Configurations that are looked at; each takes a part of a second."""

LIMIT_S: Final = 300.0
"""How long looking may take, in seconds; a study goes on without it then."""

_QUESTION_FILE: Final = "question.json"

StudyCheck = Callable[[Sequence[ExperimentConfig], UserConfig], list[str]]
"""What to know before a study of these configurations begins; raises `PreFlightError` where it need not."""


@dataclass(frozen=True, slots=True)
class _Question:
    configs: list[ExperimentConfig]
    machine: UserConfig


def check_here(configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[str]:
    """What some of these configurations fail for, one sentence each, found out in this process.

    Raises:
        PreFlightError: None of them can run here; the reasons that all share come first.
    """
    return _verdict(configs, [_failures(config, machine) for config in _chosen(configs)])


def check_in_child(configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[str]:
    """As `check_here`, found out in a process that is gone afterwards.

    Raises:
        PreFlightError: None of them can run here; the reasons that all share come first.
        PersistenceError: There is no room for temporary files.
    """
    chosen = _chosen(configs)
    try:
        with tempfile.TemporaryDirectory(prefix="llem-") as name:
            directory = Path(name)
            question = TypeAdapter(_Question).dump_json(_Question(chosen, machine), exclude_unset=True)
            (directory / _QUESTION_FILE).write_bytes(question)
            preload = preload_modules(chosen[0].backend) if chosen else ()
            task = ChildTask(directory, directory / "child.log", preload, entry=f"{__name__}:answer")
            (found,) = ChildGroup([task], Patience(), LIMIT_S).run(lambda event: None, Interrupt())
    except ChildFailedError as error:
        return [f"Whether the study can run here could not be found out: {error}"]
    except OSError as error:
        raise PersistenceError(f"No room for temporary files: {error.strerror or error}.") from error
    return _verdict(configs, json.loads(found))


def answer(directory: Path, link: ParentLink) -> str:
    """The failures of each configuration of the question in a directory, as JSON; what `check_in_child` runs."""
    question = TypeAdapter(_Question).validate_json((directory / _QUESTION_FILE).read_bytes())
    return json.dumps([_failures(config, question.machine) for config in question.configs])


def _failures(config: ExperimentConfig, machine: UserConfig) -> list[str]:
    host = Host()
    engine = engine_or_reason(config.backend, host.clock, Path(machine.output.model_cache_dir).expanduser())
    try:
        run_preflight(config, engine, machine, energy_backend_name(config, machine), host)
    except PreFlightError as error:
        return list(error.failures)
    return []


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
