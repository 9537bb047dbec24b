"""Reports as files: beside what they are of, and never at its expense."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from llenergymeasure.atomic import naming_the_path, write_bytes_atomically
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import (
    MANIFEST_FILE,
    REPORT_FILE,
    RESULT_FILE,
    STUDY_FILE,
    load_result,
    load_study,
)
from llenergymeasure.security import user_path

_log = logging.getLogger(__name__)


def write_report(directory: Path) -> Path:
    """Draw the report of the experiment or of the study that a directory holds, anew if there is one.

    Raises:
        PersistenceError: It holds neither, what it holds cannot be read, or the report cannot be written; names it.
    """
    directory = user_path(directory)
    path = directory / REPORT_FILE
    write_page(path, page_of(directory))
    return path


def page_of(directory: Path) -> str:
    """The report of the experiment or of the study that a directory holds.

    Raises:
        PersistenceError: It holds neither, or what it holds cannot be read; names it.
    """
    if holds(directory, RESULT_FILE):
        from llenergymeasure.results.report.experiment import experiment_page

        return experiment_page(load_result(directory), directory)
    if holds(directory, STUDY_FILE):
        from llenergymeasure.results.report.study import study_page

        return study_page(load_study(directory), directory)
    if holds(directory, MANIFEST_FILE):
        raise PersistenceError(
            f"{directory} is a study without {STUDY_FILE}: it still runs, or was killed. Its report comes with its end "
            f"(llem run --resume {shlex.quote(str(directory))}); those of its finished runs are in their directories."
        )
    raise PersistenceError(f"{directory} holds neither {RESULT_FILE} nor {STUDY_FILE}: no experiment, no study.")


def holds(directory: Path, name: str) -> bool:
    """Whether there is such a file in a directory.

    Raises:
        PersistenceError: Nobody can look there; names the directory.
    """
    with naming_the_path(directory, "read"):
        return (directory / name).is_file()


def write_page(path: Path, page: str) -> None:
    """Write a page in one step.

    Raises:
        PersistenceError: It cannot be written; names `path`.
    """
    write_bytes_atomically(user_path(path), page.encode("utf-8", "replace"))


def report_on(directory: Path) -> Path | None:
    """The report of what a directory holds; `None` where it could not be made, of which the log tells."""
    try:
        return write_report(directory)
    except Exception as error:  # noqa: BLE001 (a full disk, a broken matplotlib: never what was measured)
        _log.warning(
            "The report of %s could not be made, and nothing else is missing: %s. To make it later: "
            "python -m llenergymeasure.results.report %s",
            directory,
            str(error).rstrip(".") or type(error).__name__,
            shlex.quote(str(directory)),
        )
        return None
