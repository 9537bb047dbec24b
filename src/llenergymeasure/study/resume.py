"""Going on with a study: what is kept, what is run again, and whether it still is the same study.

A run is known by its `measurement_config_hash` and its cycle, and by the SHA-256 of its prompts. A completed run is
kept when its result loads; everything else is run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from llenergymeasure.config.base import by_dotted_path
from llenergymeasure.config.grid import compute_study_design_hash
from llenergymeasure.config.models import ExperimentConfig, StudyConfig, experiment_title
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import ExperimentResult, compute_measurement_config_hash
from llenergymeasure.domain.study import ExperimentManifestEntry, StudyManifest
from llenergymeasure.exceptions import LLEMError, PersistenceError, StudyError
from llenergymeasure.results.persistence import RESULT_FILE, load_result
from llenergymeasure.security import is_safe_path, validate_path
from llenergymeasure.study.manifest import MANIFEST_FILE, load_manifest
from llenergymeasure.study.sequence import RunKey, plan_runs

MAX_DIFFERENCES: Final = 20
"""Differences between two versions of a study that a message lists."""

DatasetHash = Callable[[ExperimentConfig], str | None]
"""SHA-256 of the prompts an experiment would use now; `None` where that cannot be told without loading a model."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumption:
    """What an earlier execution of a study leaves to this one.

    Args:
        kept: Completed entries that stay.
        started_at: When the study began; `None` where nobody knows any more.
        environment: Environment of the kept results.
        warnings: What the user should know: results that are run again, and why.
    """

    study: StudyConfig
    kept: tuple[ExperimentManifestEntry, ...]
    started_at: datetime | None
    environment: EnvironmentSnapshot | None
    warnings: tuple[str, ...]


def check_study_dir(study_dir: Path) -> None:
    """Make sure that `study_dir` can hold a study.

    Raises:
        ConfigError: The path is unsafe to open.
        StudyError: There is no such directory.
    """
    validate_path(study_dir, what="resume")
    if not study_dir.is_dir():
        raise StudyError(f"there is no study to go on with: {study_dir} is not a directory")


def load_resumable_study(study_dir: Path) -> StudyConfig:
    """The study of a directory, from its manifest alone.

    Raises:
        ConfigError: The path is unsafe to open.
        PersistenceError: There is no manifest, or it is damaged.
        StudyError: There is no such directory, or this release cannot read the study in it.
    """
    check_study_dir(study_dir)
    manifest = load_manifest(study_dir)
    try:
        # As JSON: strict models take a list for a tuple there.
        return StudyConfig.model_validate_json(json.dumps(manifest.study))
    except ValidationError as error:
        raise StudyError(
            f"{study_dir / MANIFEST_FILE}: the study in it (written by llenergymeasure "
            f"{manifest.llenergymeasure_version}) does not fit this release: {error.errors()[0]['msg']}. "
            "Give the study file beside --resume."
        ) from error


def plan_resumption(study_dir: Path, study: StudyConfig | None, dataset_sha256: DatasetHash) -> Resumption:
    """Find out what of a study is done and what is left.

    Args:
        study: The study as it is now; `None`: as the manifest has it.
        dataset_sha256: Identifies the prompts of an experiment as they are now.

    Raises:
        StudyError: There is no study in the directory, or `study` differs in more than its execution.
        PersistenceError: The manifest is damaged, and no `study` was given to do without it.
    """
    check_study_dir(study_dir)
    warnings: list[str] = []
    try:
        manifest = load_manifest(study_dir)
    except PersistenceError as error:
        if study is None:
            raise PersistenceError(f"{error} Give the study file beside --resume to go on without it.") from error
        warnings.append(f"{error} Going on with the results that are there.")
        manifest = None
    else:
        before = load_resumable_study(study_dir)
        study = study or before
        refuse_changes(before, study)
    done = _Done(study_dir, dataset_sha256)
    kept = [entry for entry in _candidates(study_dir, study, manifest) if done.holds(entry, study)]
    _refuse_fewer_cycles(study, manifest)
    return Resumption(
        study=study,
        kept=tuple(kept),
        started_at=None if manifest is None else manifest.started_at,
        environment=done.environment,
        warnings=(*warnings, *done.warnings),
    )


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


class _Done:
    """Decides which completed entries still count."""

    def __init__(self, study_dir: Path, dataset_sha256: DatasetHash) -> None:
        self._dir = study_dir
        self._dataset_sha256 = dataset_sha256
        self._hashes_now: dict[str, str | None] = {}
        self.environment: EnvironmentSnapshot | None = None
        self.warnings: list[str] = []

    def holds(self, entry: ExperimentManifestEntry, study: StudyConfig) -> bool:
        problem = self._problem(entry, study)
        if problem is not None:
            self.warnings.append(f"{entry.config_summary}, cycle {entry.cycle}, runs again: {problem}")
        return problem is None

    def _problem(self, entry: ExperimentManifestEntry, study: StudyConfig) -> str | None:
        if entry.result_file is None or not is_safe_path(self._dir, entry.result_file):
            return "its entry names no result in this directory"
        try:
            result = load_result(self._dir / entry.result_file)
        except PersistenceError as error:
            return str(error)
        if result.measurement_config_hash != entry.config_hash:
            return f"{entry.result_file} is the result of another configuration"
        then = entry.dataset_sha256
        now = None if then is None else self._hash_now(entry.config_hash, study)
        if then is not None and now is not None and now != then:
            return f"its data set has changed since (SHA-256 {then[:12]}… -> {now[:12]}…)"
        self.environment = self.environment or result.environment_snapshot
        return None

    def _hash_now(self, config_hash: str, study: StudyConfig) -> str | None:
        if not self._hashes_now:
            for config in study.experiments:
                self._hashes_now[compute_measurement_config_hash(config)] = self._hash_or_none(config)
        return self._hashes_now.get(config_hash)

    def _hash_or_none(self, config: ExperimentConfig) -> str | None:
        try:
            return self._dataset_sha256(config)
        except LLEMError as error:  # the run itself will say it, if there is one left to do
            self.warnings.append(f"The data set of {experiment_title(config)} cannot be checked: {error}")
            return None


def _candidates(
    study_dir: Path, study: StudyConfig, manifest: StudyManifest | None
) -> Iterator[ExperimentManifestEntry]:
    """Entries that claim to be completed, and results that were saved an instant before their study was killed."""
    claimed = {} if manifest is None else {(e.config_hash, e.cycle): e for e in manifest.experiments}
    yield from (entry for entry in claimed.values() if entry.status == "completed")
    named = {entry.result_file for entry in claimed.values()}
    titles: dict[RunKey, str] = {run.key: run.title for run in plan_runs(study)}
    for path in sorted(study_dir.glob(f"*/{RESULT_FILE}")):
        name = path.relative_to(study_dir).as_posix()
        if name in named:
            continue
        result = _load_or_warn(path)
        if result is None or result.cycle is None:
            continue
        key = (result.measurement_config_hash, result.cycle)
        if key in titles and (key not in claimed or claimed[key].status != "completed"):
            named.add(name)
            yield _entry_of(result, name, titles.pop(key))


def _entry_of(result: ExperimentResult, name: str, title: str) -> ExperimentManifestEntry:
    return ExperimentManifestEntry(
        config_hash=result.measurement_config_hash,
        config_summary=title,
        cycle=result.cycle or 1,
        status="completed",
        result_file=name,
        started_at=result.start_time,
        completed_at=result.end_time,
        dataset_sha256=None if result.dataset is None else result.dataset.sha256,
    )


def _load_or_warn(path: Path) -> ExperimentResult | None:
    try:
        return load_result(path)
    except PersistenceError as error:
        _log.warning("Not used: %s", error)
        return None


def _refuse_fewer_cycles(study: StudyConfig, manifest: StudyManifest | None) -> None:
    done = [entry.cycle for entry in (manifest.experiments if manifest else []) if entry.status == "completed"]
    if done and max(done) > study.execution.n_cycles:
        raise StudyError(
            f"execution.n_cycles: {study.execution.n_cycles} is fewer than the {max(done)} cycles that have results "
            "here. Cycles can be added to a study, not taken away."
        )


def _flat(config: ExperimentConfig) -> dict[str, Any]:
    """Fields by dotted path, unset ones left out."""
    return dict(by_dotted_path(config.model_dump(mode="json", exclude_none=True, exclude={"output_dir"})))
