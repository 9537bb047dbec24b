"""The results below directories, whoever made them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from llenergymeasure.atomic import naming_the_path
from llenergymeasure.domain.base import as_utc
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import RESULT_FILE, ResultFileWarning, load_result
from llenergymeasure.security import user_path

Found = tuple[Path, ExperimentResult]
"""A file and the result that it holds."""


def result_files(place: Path) -> list[Path]:
    """Every `result.json` below a directory, by name; a file stands for itself.

    Not those in hidden directories: there running experiments keep what is not a result yet.

    Raises:
        PersistenceError: Nobody can look there; names the place.
    """
    place = user_path(place)
    with naming_the_path(place, "read"):
        if not place.is_dir():
            return [place]
        found = ((path, path.relative_to(place).parts) for path in place.rglob(RESULT_FILE))
        return sorted(path for path, parts in found if not any(part.startswith(".") for part in parts))


def results_in(place: Path) -> Iterator[Found]:
    """The results that `result_files` names, one at a time in memory.

    Raises:
        PersistenceError: One cannot be read; names it.
    """
    for path in result_files(place):
        yield path, _load(path)


def results_below(places: Iterable[Path]) -> Iterator[Found]:
    """Every result that can be read, one at a time in memory; of each other one, a line on standard error."""
    seen: set[Path] = set()
    for place in places:
        try:
            files = result_files(place)
        except PersistenceError as error:
            _say_left_out(error)
            continue
        for path in (path for path in files if path not in seen):
            seen.add(path)
            try:
                result = _load(path)
            except PersistenceError as error:
                _say_left_out(error)
                continue
            yield path, result


def each_once(found: Iterable[Found]) -> Iterator[Found]:
    """Without further copies of a result: a copy is no second measurement."""
    seen: set[tuple[str, datetime]] = set()
    for path, result in found:
        if (identity := identity_of(result)) not in seen:
            seen.add(identity)
            yield path, result


def identity_of(result: ExperimentResult) -> tuple[str, datetime]:
    """What a result and its copies have in common, and no other."""
    return result.experiment_id, as_utc(result.start_time)


def _load(path: Path) -> ExperimentResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultFileWarning)  # its figures need no time series
        return load_result(path)


def _say_left_out(error: PersistenceError) -> None:
    sys.stderr.write(f"Left out: {error}\n")
