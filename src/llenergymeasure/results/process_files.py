"""Records of the processes of one experiment, while they wait to be put together.

    .state/{experiment_id}/
        process_0.json    the RawProcessResult
        process_0.done    marker: the record is whole, and its process had nothing more to do

Internal: nothing here is a result for users.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from llenergymeasure.atomic import write_bytes_atomically
from llenergymeasure.domain.experiment import RawProcessResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.loading import load_record
from llenergymeasure.results.persistence import to_json
from llenergymeasure.security import sanitize_experiment_id

_RECORD: Final = re.compile(r"process_(\d+)\.json")
_MARKER: Final = re.compile(r"process_(\d+)\.done")


def write_process_result(record: RawProcessResult, state_dir: Path) -> Path:
    """Leave a process's record, and after it the marker that says it is whole.

    Args:
        record: What the process measured.
        state_dir: The `.state` directory that all processes share.

    Raises:
        PersistenceError: It cannot be written; names the path.
    """
    directory = _directory(state_dir, record.experiment_id)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PersistenceError(f"Cannot create {directory}: {error.strerror or error}.") from error
    path = to_json(record, directory / f"process_{record.process_index}.json")
    write_bytes_atomically(path.with_suffix(".done"), b"")
    return path


def read_process_results(experiment_id: str, state_dir: Path) -> list[RawProcessResult]:
    """All records of an experiment, in the order of their process index.

    Raises:
        PersistenceError: A record is damaged; names the file.
    """
    indices = _indices(_directory(state_dir, experiment_id), _RECORD)
    directory = _directory(state_dir, experiment_id)
    return [load_record(directory / f"process_{i}.json", RawProcessResult, "process record") for i in sorted(indices)]


def marked_indices(experiment_id: str, state_dir: Path) -> frozenset[int]:
    """Indices of the processes that left their marker."""
    return _indices(_directory(state_dir, experiment_id), _MARKER)


def _directory(state_dir: Path, experiment_id: str) -> Path:
    return state_dir / sanitize_experiment_id(experiment_id)


def _indices(directory: Path, pattern: re.Pattern[str]) -> frozenset[int]:
    if not directory.is_dir():
        return frozenset()
    matches = (pattern.fullmatch(path.name) for path in directory.iterdir())
    return frozenset(int(match[1]) for match in matches if match)
