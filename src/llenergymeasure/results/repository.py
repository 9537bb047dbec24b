"""The results directory of the user, as the place where results are kept and found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.results.persistence import load_result, save_result_or_rescue


@runtime_checkable
class ResultsRepository(Protocol):
    """Keeps results."""

    def save(self, result: ExperimentResult, timeseries: Path | None = None, extra_files: Sequence[Path] = ()) -> Path:
        """Store a result with the files that belong beside it, and say where.

        Raises:
            PersistenceError: It could not be stored where it should be.
        """

    def load(self, path: Path) -> ExperimentResult:
        """Read a stored result back."""


class DirectoryRepository:
    """A `ResultsRepository` that gives each result a directory of its own.

    Args:
        root: Where the directories go; made if missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, result: ExperimentResult, timeseries: Path | None = None, extra_files: Sequence[Path] = ()) -> Path:
        """Store a result with the files that belong beside it; nothing is ever overwritten.

        Returns:
            Path of the new `result.json`.

        Raises:
            ResultRescuedError: It had to be saved elsewhere; says where.
            PersistenceError: It could not be saved at all.
        """
        return save_result_or_rescue(result, self._root, timeseries, extra_files)

    def load(self, path: Path) -> ExperimentResult:
        """Read a result back.

        Args:
            path: A `result.json` or its directory, as `save` gave it or relative to the root.

        Raises:
            PersistenceError: The file is missing, damaged, or of another major version.
        """
        return load_result(path if path.exists() else self._root / path)
