"""The records of an experiment's processes, while they wait to be put together.

    .state/{experiment_id}/    internal: nothing here is a result for users
        process_0.json         the RawProcessResult
        process_0.done         marker: the record is whole, and its process had nothing more to do

The marker is written last.
"""

from __future__ import annotations

import re
from pathlib import Path

from llenergymeasure.atomic import make_directories, naming_the_path, write_bytes_atomically
from llenergymeasure.domain.experiment import RawProcessResult
from llenergymeasure.results.persistence import load_record, to_json
from llenergymeasure.security import sanitize_experiment_id


def write_process_result(record: RawProcessResult, state_dir: Path) -> Path:
    """Leave a process's record in the `.state` directory, and after it the marker that says it is whole.

    Raises:
        PersistenceError: It cannot be written; names the path.
    """
    directory = _directory(state_dir, record.experiment_id)
    with naming_the_path(directory, "create"):
        make_directories(directory)
    path = to_json(record, directory / f"process_{record.process_index}.json")
    write_bytes_atomically(path.with_suffix(".done"), b"")
    return path


def read_process_results(experiment_id: str, state_dir: Path) -> list[RawProcessResult]:
    """All records of an experiment, in the order of their process index.

    Raises:
        PersistenceError: A record is damaged; names the file.
    """
    directory = _directory(state_dir, experiment_id)
    paths = (directory / f"process_{index}.json" for index in sorted(_indices(directory, "json")))
    return [load_record(path, RawProcessResult, "process record") for path in paths]


def marked_indices(experiment_id: str, state_dir: Path) -> frozenset[int]:
    """Indices of the processes that left their marker."""
    return _indices(_directory(state_dir, experiment_id), "done")


def _directory(state_dir: Path, experiment_id: str) -> Path:
    return state_dir / sanitize_experiment_id(experiment_id)


def _indices(directory: Path, ending: str) -> frozenset[int]:
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    matches = (re.fullmatch(rf"process_(\d+)\.{ending}", name) for name in names)
    return frozenset(int(match[1]) for match in matches if match)
