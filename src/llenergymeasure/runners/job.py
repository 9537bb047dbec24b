"""The door of every runner: a directory with what to run, and what came of it.

    job.json ──> python -m llenergymeasure.runners.job DIR ──> result.json or error.json, and the files of the run

A child process, the processes of a parallel run, a container and a node of a cluster all run this one command, with a
launcher at their stdin (`--attached`) or with nothing but the directory; `runners.child` is its inside. Paths in the
files are relative to the directory, which may have another name at the other end, and nothing in them is code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from llenergymeasure.atomic import naming_the_path
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.constants import VERSION
from llenergymeasure.core.baseline import CachedBaseline
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.datasets.types import WHOLE, Shard
from llenergymeasure.domain.experiment import ExperimentResult, RawProcessResult
from llenergymeasure.exceptions import ExperimentError
from llenergymeasure.security import is_safe_path

JOB_FILE: Final = "job.json"

LOCAL_RUNNER: Final = "local"
"""Name of this machine in results and in the user configuration."""


@dataclass(frozen=True, slots=True)
class MetersElsewhere:
    """The meters of further machines that an engine may spread its model over: actors of a Ray cluster.

    Args:
        actors: Their names, by those of their nodes.
        family_pid: The process that starts the engine's workers on this machine: Ray's.
    """

    address: str
    actors: dict[str, str]
    family_pid: int


@dataclass(frozen=True, slots=True)
class Job:
    """One experiment, or a shard of one, to be run once.

    Args:
        work_dir: An existing directory for the run's files, on the disk that will hold the result; not in the file.
        baselines: Idle measurements that may be reused.
        timeout_s: How long it may take, in seconds; `None`: for ever.
        silence_s: How long it may give no sign of progress, in seconds; `None`: for ever.
        experiment_id: `None`: it gets one when it begins.
        elsewhere: `None`: it has this machine only.
    """

    config: ExperimentConfig
    machine: UserConfig
    work_dir: Path = Path()
    baselines: tuple[CachedBaseline, ...] = ()
    timeout_s: float | None = None
    silence_s: float | None = None
    experiment_id: str | None = None
    shard: Shard = WHOLE
    elsewhere: MetersElsewhere | None = None
    version: str = VERSION


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A finished experiment that is not on disk yet, with the files beside it and idle power that others may reuse."""

    result: ExperimentResult
    artefacts: Artefacts
    baselines: tuple[CachedBaseline, ...] = ()


@dataclass(frozen=True, slots=True)
class MeasuredShard:
    """What a shard hands back besides its record; see `MeasuredRun`.

    Args:
        unsaved: The record itself, where the disk did not take it.
    """

    artefacts: Artefacts
    baselines: tuple[CachedBaseline, ...] = ()
    unsaved: RawProcessResult | None = None


RunT = TypeVar("RunT", MeasuredRun, MeasuredShard)


@cache
def _jobs() -> TypeAdapter[Job]:
    """Reads and writes jobs; to make it takes longer than to use it."""
    return TypeAdapter(Job)


def write_job(job: Job) -> None:
    """Leave a job in its directory.

    Raises:
        PersistenceError: It cannot be written.
    """
    path = job.work_dir / JOB_FILE
    # What is unset stays unset: a config must not change on its way.
    content = _jobs().dump_json(job, exclude={"work_dir"}, exclude_unset=True, indent=2)

    def for_its_owner(name: str, flags: int) -> int:
        """The machine's settings may name a webhook, whose address can be a secret."""
        return os.open(name, flags, 0o600)

    with naming_the_path(path), open(path, "wb", opener=for_its_owner) as file:
        file.write(content)


def read_job(directory: Path) -> Job:
    """The job of a directory.

    Raises:
        ExperimentError: It cannot be read, or was written by another release, whose settings may mean something else.
    """
    path = directory / JOB_FILE
    try:
        content = path.read_bytes()
        version = json.loads(content)["version"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExperimentError(f"Cannot read {path}: {error}.") from error
    if version != VERSION:
        raise ExperimentError(
            f"{path} was written by llenergymeasure {version}, and this is {VERSION}. "
            "Use the same release at both ends."
        )
    return replace(_jobs().validate_json(content), work_dir=directory)


def run_to_json(run: RunT, directory: Path) -> str:
    """What came of the job in `directory`, as its process hands it over."""
    portable = _with_paths(run.artefacts, lambda path: path.relative_to(directory))
    return TypeAdapter(type(run)).dump_json(replace(run, artefacts=portable)).decode()


def run_from_json(kind: type[RunT], content: str, directory: Path) -> RunT:
    """What came of the job in `directory`, as its launcher gets it.

    Raises:
        ExperimentError: It is something else, or names a file outside the directory.
    """

    def found(path: Path) -> Path:
        if not is_safe_path(directory, path):
            raise ValueError(f"{path} is not below {directory}")
        return directory / path

    try:
        run = TypeAdapter(kind).validate_json(content)
        return replace(run, artefacts=_with_paths(run.artefacts, found))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the whole"
        reason = f"{where}: {problem['msg']}"
        raise ExperimentError(f"what came of the job in {directory} is no result: {reason}") from error
    except ValueError as error:
        raise ExperimentError(f"what came of the job in {directory} is no result: {error}") from error


def _with_paths(artefacts: Artefacts, change: Callable[[Path], Path]) -> Artefacts:
    def changed(path: Path | None) -> Path | None:
        return None if path is None else change(path)

    files = changed(artefacts.timeseries), changed(artefacts.trace), changed(artefacts.outputs)
    return Artefacts(*files, tuple(map(change, artefacts.further)))


if __name__ == "__main__":
    from llenergymeasure.runners.child import main

    main()
