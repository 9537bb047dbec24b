"""Going on with a study: finding it, holding it, what is kept, what is run again, and whether it still is the same.

A run is known by its `measurement_config_hash` and its cycle, and by the SHA-256 of its prompts. A completed run is
kept when its result loads; everything else is run. A study directory belongs to one process at a time.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from io import FileIO
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from llenergymeasure.atomic import naming_the_path, open_ours, read_plain_file
from llenergymeasure.config.base import by_dotted_path
from llenergymeasure.config.grid import compute_study_design_hash
from llenergymeasure.config.models import ExperimentConfig, StudyConfig, experiment_title
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import ExperimentResult, compute_measurement_config_hash
from llenergymeasure.domain.study import ExperimentManifestEntry, StudyManifest
from llenergymeasure.exceptions import LLEMError, PersistenceError, StudyError
from llenergymeasure.results.persistence import MANIFEST_FILE, RESULT_FILE, load_result
from llenergymeasure.results.summary import one_line
from llenergymeasure.security import is_safe_path, validate_path
from llenergymeasure.study.ledger import EnvironmentKey
from llenergymeasure.study.manifest import JOURNAL_FILE, load_manifest
from llenergymeasure.study.plan import plan_runs

MAX_DIFFERENCES: Final = 20
"""Differences between two versions of a study that a message lists."""

LOCK_FILE: Final = ".lock"

MAX_HOLDER: Final = 200
"""Bytes read of a lock file, which says who holds it."""

UNKNOWN_HOLDER: Final = "another process"

_UNSUPPORTED: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumption:
    """What an earlier execution of a study leaves to this one: of a new study nothing.

    Args:
        kept: Completed entries that stay.
        started_at: When the study began; `None` where nobody knows.
        ran_s: Seconds for which it has run, as far as is known.
        environments: Environment of the kept results, by node and backend.
        hardware: Kind of hardware of the kept results, by configuration hash; the first where they differ.
        is_closed: Whether the manifest says by itself, without a journal, that the study is completed.
        warnings: What the user should know: results that are run again, and why.
    """

    study: StudyConfig
    kept: tuple[ExperimentManifestEntry, ...] = ()
    started_at: datetime | None = None
    ran_s: float = 0.0
    environments: Mapping[EnvironmentKey, EnvironmentSnapshot] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    is_closed: bool = False
    warnings: tuple[str, ...] = ()


def check_study_dir(study_dir: Path) -> Path:
    """The directory of a study that was begun, with `~` expanded.

    Raises:
        ConfigError: The path is unsafe to open.
        StudyError: There is no such directory, or no study in it.
    """
    validate_path(study_dir, what="resume")
    found = study_dir.expanduser()
    if not found.is_dir():
        raise StudyError(f"there is no study to go on with: {study_dir} is not a directory")
    if not any(os.path.lexists(found / name) for name in (MANIFEST_FILE, LOCK_FILE)):
        raise StudyError(f"there is no study to go on with: {study_dir} holds no {MANIFEST_FILE}")
    return found


def load_resumable_study(study_dir: Path) -> StudyConfig:
    """The study of a directory, from its manifest alone.

    Raises:
        ConfigError: The path is unsafe to open.
        PersistenceError: There is no manifest, or it is damaged.
        StudyError: There is no such directory or no study in it, or this release cannot read it.
    """
    study_dir = check_study_dir(study_dir)
    return _study_in(load_manifest(study_dir), study_dir)


def plan_resumption(
    study_dir: Path, study: StudyConfig | None, dataset_sha256: Callable[[ExperimentConfig], str]
) -> Resumption:
    """Find out what of a study is done and what is left.

    Args:
        study: The study as it is now; `None`: as the manifest has it.
        dataset_sha256: Identifies the prompts of an experiment as they are now.

    Raises:
        StudyError: `study` differs in more than its execution, or has fewer cycles than there are results.
        PersistenceError: There is no manifest or it is damaged, and no `study` was given to do without it.
    """
    warnings: list[str] = []
    manifest = None
    try:
        manifest = load_manifest(study_dir)
    except PersistenceError as error:
        if study is None:
            raise PersistenceError(f"{error} Give the study file beside --resume to go on without it.") from error
        warnings.append(f"{error} Going on with the results that are there.")
    else:
        before = _study_in(manifest, study_dir)
        study = study or before
        refuse_changes(before, study)
    hashes_now = cache(partial(_prompt_hashes, study.experiments, dataset_sha256, warnings))
    entries = [] if manifest is None else manifest.experiments
    kept: list[ExperimentManifestEntry] = []
    environments: dict[EnvironmentKey, EnvironmentSnapshot] = {}
    hardware: dict[str, str] = {}
    for entry in _candidates(study_dir, study, entries):
        try:
            result = _result_of(entry, study_dir, hashes_now)
        except PersistenceError as error:
            warnings.append(f"{entry.config_summary}, cycle {entry.cycle}, runs again: {error}")
        else:
            kept.append(entry)
            if result.environment_snapshot is not None:
                environments.setdefault((result.node, result.backend), result.environment_snapshot)
                hardware.setdefault(entry.config_hash, result.environment_snapshot.kind)
    _refuse_fewer_cycles(study, entries)
    return Resumption(
        study,
        kept=tuple(kept),
        started_at=None if manifest is None else manifest.started_at,
        ran_s=0.0 if manifest is None else manifest.ran_s,
        environments=environments,
        hardware=hardware,
        is_closed=manifest is not None
        and manifest.status == "completed"
        and not os.path.lexists(study_dir / JOURNAL_FILE),
        warnings=tuple(warnings),
    )


def _prompt_hashes(
    experiments: Sequence[ExperimentConfig], dataset_sha256: Callable[[ExperimentConfig], str], warnings: list[str]
) -> dict[str, str]:
    """SHA-256 of the prompts by `measurement_config_hash`; where they cannot be read, a warning is added."""
    hashes = {}
    for config in experiments:
        try:
            hashes[compute_measurement_config_hash(config)] = dataset_sha256(config)
        except LLEMError as error:  # the run itself will say it, if there is one left to do
            warnings.append(f"The data set of {experiment_title(config)} cannot be checked: {error}")
    return hashes


def experiments_left(resumption: Resumption) -> list[ExperimentConfig]:
    """The experiments of a study that have a run left to do, each once."""
    kept = {(entry.config_hash, entry.cycle) for entry in resumption.kept}
    left = {run.config_hash: run.config for run in plan_runs(resumption.study) if run.key not in kept}
    return list(left.values())


def refuse_changes(before: StudyConfig, now: StudyConfig) -> None:
    """Make sure that two versions of a study measure the same.

    Raises:
        StudyError: They do not; shows the differences.
    """
    if compute_study_design_hash(before.experiments) == compute_study_design_hash(now.experiments):
        return
    differences = list(describe_changes(before.experiments, now.experiments))
    shown = "\n".join(f"  - {line}" for line in differences[:MAX_DIFFERENCES])
    more = len(differences) - MAX_DIFFERENCES
    raise StudyError(
        "The study has changed since it was begun; its results would not belong together:\n"
        f"{shown}\n" + (f"  - and {more} more\n" if more > 0 else "") + "Start it as a new study, or undo the change "
        "(what stands under execution: may change)."
    )


def describe_changes(before: Sequence[ExperimentConfig], now: Sequence[ExperimentConfig]) -> Iterator[str]:
    """One line per difference between two lists of experiments."""
    old = {compute_measurement_config_hash(config): config for config in before}
    new = {compute_measurement_config_hash(config): config for config in now}
    gone = [config for key, config in old.items() if key not in new]
    added = [config for key, config in new.items() if key not in old]
    if not gone and not added:
        yield "the experiments are in another order"
    for was, becomes in zip(gone, added, strict=False):
        fields_before, fields_now = _flat(was), _flat(becomes)
        changed = [key for key in {**fields_before, **fields_now} if fields_before.get(key) != fields_now.get(key)]
        values = ", ".join(f"{key}: {fields_before.get(key)} -> {fields_now.get(key)}" for key in changed)
        yield f"{experiment_title(was)}: {values}"
    for config in gone[len(added) :]:
        yield f"removed: {experiment_title(config)}"
    for config in added[len(gone) :]:
        yield f"added: {experiment_title(config)}"


@contextmanager
def locked(study_dir: Path) -> Iterator[None]:
    """Hold a study directory for the length of a `with` block.

    The kernel gives the lock back when its holder ends, however it ends; the file itself stays.

    Raises:
        StudyError: Another process holds it; names that process.
        PersistenceError: The lock file cannot be written, or is not ours.
    """
    path = study_dir / LOCK_FILE
    with FileIO(open_ours(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyError(
                f"{study_dir} is in use by {_holder(file)}. Wait for it to end, or stop it; two studies must not share "
                "a directory, nor a machine."
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise PersistenceError(f"Cannot lock {path}: {error.strerror or error}.") from error
            _log.warning("%s cannot be locked (%s); see to it yourself that nobody else uses it", path, error.strerror)
        with naming_the_path(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def _holder(lock: FileIO) -> str:
    """Who holds a lock, as its file says."""
    with suppress(OSError):  # that it is held is what matters
        return one_line(lock.read(MAX_HOLDER).decode(errors="replace")) or UNKNOWN_HOLDER
    return UNKNOWN_HOLDER


def find_unfinished(parent: Path, study_design_hash: str) -> Path | None:
    """The latest directory below `parent` of an unfinished study of this design that nobody is running."""
    candidates = []
    for path in parent.glob(f"*/{MANIFEST_FILE}"):
        try:
            if study_design_hash.encode() not in read_plain_file(path, follow_links=False):
                continue  # most studies are told apart without parsing them
            manifest = load_manifest(path.parent)
        except (OSError, PersistenceError) as error:
            _log.info("Not looked at: %s", error)
            continue
        if manifest.study_design_hash == study_design_hash and manifest.status != "completed":
            candidates.append((manifest.started_at, path.parent))
    for _, directory in sorted(candidates, reverse=True):
        with suppress(StudyError, PersistenceError), locked(directory):
            return directory
    return None


def _study_in(manifest: StudyManifest, study_dir: Path) -> StudyConfig:
    try:
        # As JSON: strict models take a list for a tuple there.
        return StudyConfig.model_validate_json(json.dumps(manifest.study))
    except ValidationError as error:
        raise StudyError(
            f"{study_dir / MANIFEST_FILE}: the study in it (written by llenergymeasure "
            f"{manifest.llenergymeasure_version}) does not fit this release: {error.errors()[0]['msg']}. "
            "Give the study file beside --resume."
        ) from error


def _candidates(
    study_dir: Path, study: StudyConfig, entries: Sequence[ExperimentManifestEntry]
) -> Iterator[ExperimentManifestEntry]:
    """Entries that claim to be completed, and results that were saved an instant before their study was killed."""
    yield from (entry for entry in entries if entry.status == "completed")
    completed = {(entry.config_hash, entry.cycle) for entry in entries if entry.status == "completed"}
    named = {entry.result_file for entry in entries}
    titles = {run.key: run.title for run in plan_runs(study) if run.key not in completed}
    for path in sorted(study_dir.glob(f"*/{RESULT_FILE}")):
        name = path.relative_to(study_dir).as_posix()
        if name in named:
            continue
        try:
            result = load_result(path)
        except PersistenceError as error:
            _log.warning("Not used: %s", error)
            continue
        config_hash, cycle = result.measurement_config_hash, result.cycle or 0  # 0: not of a study
        title = titles.pop((config_hash, cycle), None)
        if title is not None:
            yield ExperimentManifestEntry(
                config_hash=config_hash,
                config_summary=title,
                cycle=cycle,
                status="completed",
                result_file=name,
                started_at=result.start_time,
                completed_at=result.end_time,
                dataset_sha256=None if result.dataset is None else result.dataset.sha256,
            )


def _result_of(
    entry: ExperimentManifestEntry, study_dir: Path, hashes_now: Callable[[], Mapping[str, str]]
) -> ExperimentResult:
    """The result of a completed entry.

    Raises:
        PersistenceError: It no longer counts; says why.
    """
    if entry.result_file is None or not is_safe_path(study_dir, entry.result_file):
        raise PersistenceError("its entry names no result in this directory")
    result = load_result(study_dir / entry.result_file)
    if result.measurement_config_hash != entry.config_hash:
        raise PersistenceError(f"{entry.result_file} is the result of another configuration")
    then = entry.dataset_sha256
    now = None if then is None else hashes_now().get(entry.config_hash)
    if then is not None and now is not None and now != then:
        raise PersistenceError(f"its data set has changed since (SHA-256 {then[:12]}… -> {now[:12]}…)")
    return result


def _refuse_fewer_cycles(study: StudyConfig, entries: Sequence[ExperimentManifestEntry]) -> None:
    most = max((entry.cycle for entry in entries if entry.status == "completed"), default=0)
    if most > study.execution.n_cycles:
        raise StudyError(
            f"execution.n_cycles: {study.execution.n_cycles} is fewer than the {most} cycles that have results "
            f"here. Cycles can be added to a study, not taken away: set it to {most} or more (--cycles {most})."
        )


def _flat(config: ExperimentConfig) -> dict[str, Any]:
    """Fields by dotted path, unset ones left out."""
    return dict(by_dotted_path(config.model_dump(mode="json", exclude_none=True, exclude={"output_dir"})))
