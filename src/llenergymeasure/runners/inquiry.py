"""What experiments would fail for, found out where they would run, by a process of the kind that would run them.

question.json ──> a child with the entry `answer` ──> the failures of each configuration
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.preflight import run_preflight
from llenergymeasure.exceptions import PreFlightError
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.local import energy_backend_name, engine_or_reason

ENTRY: Final = f"{__name__}:answer"
"""What a child runs that is asked."""

LIMIT_S: Final = 300.0
"""How long looking may take, in seconds."""

_QUESTION_FILE: Final = "question.json"


@dataclass(frozen=True, slots=True)
class _Question:
    configs: list[ExperimentConfig]
    machine: UserConfig


def put_question(configs: Sequence[ExperimentConfig], machine: UserConfig, directory: Path) -> None:
    """Leave in a directory what `answer` is to look at; raises `OSError` where there is no room."""
    question = TypeAdapter(_Question).dump_json(_Question(list(configs), machine), exclude_unset=True)
    (directory / _QUESTION_FILE).write_bytes(question)


def answer(directory: Path, link: ParentLink) -> str:
    """The failures of each configuration of the question in a directory, as JSON."""
    question = TypeAdapter(_Question).validate_json((directory / _QUESTION_FILE).read_bytes())
    return json.dumps([failures_here(config, question.machine) for config in question.configs])


def failures_here(config: ExperimentConfig, machine: UserConfig) -> list[str]:
    """What an experiment fails for in this process."""
    host = Host()
    engine = engine_or_reason(config.backend, host.clock, Path(machine.output.model_cache_dir).expanduser())
    try:
        run_preflight(config, engine, machine, energy_backend_name(config, machine), host)
    except PreFlightError as error:
        return list(error.failures)
    return []
