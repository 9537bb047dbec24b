"""A study directory belongs to one process at a time; an unfinished one that nobody holds can be gone on with."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from llenergymeasure.exceptions import PersistenceError, StudyError
from llenergymeasure.study.manifest import MANIFEST_FILE, load_manifest

LOCK_FILE: Final = ".lock"

_UNSUPPORTED: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})

_log = logging.getLogger(__name__)


@contextmanager
def locked(study_dir: Path) -> Iterator[None]:
    """Hold a study directory for the length of a `with` block.

    The kernel gives the lock back when its holder ends, however it ends; the file itself stays.

    Raises:
        StudyError: Another process holds it; names that process.
        PersistenceError: The lock file cannot be written.
    """
    path = study_dir / LOCK_FILE
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise PersistenceError(f"Cannot write {path}: {error.strerror or error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise StudyError(
                f"{study_dir} is in use by {holder}. Wait for it to end, or stop it; two studies must not share a "
                "directory, nor a machine."
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise PersistenceError(f"Cannot lock {path}: {error.strerror or error}.") from error
            _log.warning("%s cannot be locked (%s); see to it yourself that nobody else uses it", path, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def find_unfinished(parent: Path, study_design_hash: str) -> Path | None:
    """The latest directory below `parent` of an unfinished study of this design that nobody is running."""
    candidates = []
    for path in parent.glob(f"*/{MANIFEST_FILE}"):
        try:
            if study_design_hash not in path.read_text(encoding="utf-8", errors="replace"):
                continue  # most studies are told apart without parsing them
            manifest = load_manifest(path.parent)
        except (OSError, PersistenceError) as error:
            _log.info("Not looked at: %s", error)
            continue
        if manifest.study_design_hash == study_design_hash and manifest.status != "completed":
            candidates.append((manifest.started_at, path.parent))
    for _, directory in sorted(candidates, reverse=True):
        if _is_free(directory):
            return directory
    return None


def _is_free(directory: Path) -> bool:
    try:
        with locked(directory):
            return True
    except (StudyError, PersistenceError):
        return False
