"""Whether another llem measures on this machine: a shared lock on an empty file in the temporary directory.

Whoever measures holds the lock together with all others that do; whoever gets it alone is alone. The file belongs to
everybody: it is never written to or read, so that it does not matter who made it, and a lock that somebody holds is
never waited for. One that is a link, or no plain file, is left alone. Each run also sets the file's time, if the file
is its user's, so that a longer run learns of a shorter one that came and went. Who leaves last removes the file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

logger = logging.getLogger(__name__)

NAME: Final = "llenergymeasure-measuring.lock"

OTHERS_MEASURE: Final = MeasurementWarning(
    WarningCode.OTHER_MEASUREMENT,
    "another llem measured on this machine at the same time, and each has the other's load in its figures; measure one "
    "after the other",
)

_TRIES: Final = 100
"""How often a marker may be removed by whoever leaves, between its being opened and locked here."""

_STAYS: Final = stat.S_ISVTX
"""Mode of a marker that containers share: it may be on its way into one, where no lock shows that yet."""

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def alone() -> Iterator[Callable[[], bool]]:
    """`measuring` of one that nobody is told of and that looks for nobody."""
    yield lambda: False


@contextmanager
def measuring(directory: Path | None = None) -> Iterator[Callable[[], bool]]:
    """Be known as measuring for the length of a `with` block; yields whether others are, or were meanwhile.

    Args:
        directory: Where the marker lies; `None`: the system's temporary directory.
    """
    path = _path(directory)
    try:
        file, at_first = _joined(path)
    except OSError as error:
        logger.debug("Nobody can be told that this process measures: %s", error)
        yield lambda: False
        return
    try:
        with suppress(OSError):  # another user's
            os.utime(file)
        began = os.fstat(file).st_mtime_ns
        yield lambda: at_first or not _alone(file) or os.fstat(file).st_mtime_ns != began
    finally:
        with suppress(OSError):  # another user's, or its directory is gone
            _leave(file, path)
        os.close(file)


def shared_marker() -> Path | None:
    """The marker's place on this machine, for a container to share; it stays. `None`: there can be none."""
    path = _path(None)
    try:
        file = _open_marker(path)
    except OSError:
        return None
    with suppress(OSError):  # another user's
        os.fchmod(file, 0o644 | _STAYS)
    os.close(file)
    return path


def _path(directory: Path | None) -> Path:
    return Path(tempfile.gettempdir() if directory is None else directory) / NAME


def _joined(path: Path) -> tuple[int, bool]:
    """The marker, open and locked together with whoever else measures; whether somebody does."""
    for _ in range(_TRIES):
        file = _open_marker(path)
        alone = _alone(file)
        if _locked(file, fcntl.LOCK_SH) and _is_in_place(file, path):
            return file, not alone
        os.close(file)  # whoever left last was just removing it
    return _open_marker(path), True


def _leave(file: int, path: Path) -> None:
    try:
        found = os.fstat(file)
        removable = found.st_size == 0 and not found.st_mode & _STAYS
        if removable and _locked(file, fcntl.LOCK_EX) and _is_in_place(file, path):
            path.unlink()
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # not left to the end of processes that were forked meanwhile


def _alone(file: int) -> bool:
    """Whether nobody else holds the lock; afterwards it is held together with whoever does."""
    alone = _locked(file, fcntl.LOCK_EX)
    _locked(file, fcntl.LOCK_SH)
    return alone


def _locked(file: int, how: int) -> bool:
    """Lock the file, unless somebody's lock forbids it; whether it is locked."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_in_place(file: int, path: Path) -> bool:
    """Whether the open file is still the one that others find there."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    return False


def _open_marker(path: Path) -> int:
    try:
        file = os.open(path, _OPEN)
    except FileNotFoundError:
        file = os.open(path, _OPEN | os.O_CREAT, 0o644)
        with suppress(OSError):  # another user's, who was quicker
            os.fchmod(file, 0o644)  # whatever the umask, other users must be able to open it
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(file)
        raise OSError(f"{path} is not a plain file of its own")
    return file
