"""Transitions of a study, one line each, on disk before the next thing happens."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llenergymeasure.exceptions import PersistenceError

JOURNAL_FILE: Final = "manifest.journal.jsonl"

_log = logging.getLogger(__name__)


class Journal:
    """An append-only file of JSON lines; each append is on disk when it returns.

    Args:
        path: The file; what is in it already is discarded.

    Raises:
        PersistenceError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._length = 0
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._cannot_write(error) from error

    def append(self, line: str) -> None:
        """Write one line.

        Raises:
            PersistenceError: It is not on disk; what was there before is untouched.
        """
        content = line.encode("utf-8") + b"\n"
        try:
            written = os.pwrite(self._descriptor, content, self._length)
            if written < len(content):  # the disk is full: the rest of the line says so
                os.pwrite(self._descriptor, content[written:], self._length + written)
            os.fdatasync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # the next line goes over what was written of this one anyway
                os.ftruncate(self._descriptor, self._length)
            raise self._cannot_write(error) from error
        self._length += len(content)

    def remove(self) -> None:
        """Close and delete the file: everything in it stands elsewhere."""
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)

    def _cannot_write(self, error: OSError) -> PersistenceError:
        return PersistenceError(f"Cannot write {self._path}: {error.strerror or error}.")


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of a journal; a line cut short by a crash ends it. Nothing where there is no file.

    Raises:
        PersistenceError: It cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise PersistenceError(f"Cannot read {path}: {error.strerror or error}.") from error
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            _log.warning("%s: line %d was cut short; it and what follows are ignored", path, number)
            return
        yield record
