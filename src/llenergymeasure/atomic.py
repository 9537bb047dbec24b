"""Files that are either whole or absent, and directories that belong to one writer.

    write to .name.XXXX.tmp -> flush -> fsync -> rename to name -> fsync the directory

A reader never sees half a file, and after a power cut the old or the new content is there, never a mixture.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llenergymeasure.exceptions import PersistenceError

_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES})
"""What file systems answer that cannot sync a directory; the rename itself has been done by then."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace a file, which `write` fills, in one step; its directory must exist.

    Raises:
        PersistenceError: The disk is full, the directory is gone, or permission is missing; names `path`. Nothing is
            left behind, and a previous file is untouched. Errors of `write` other than `OSError` pass through.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _naming_the_path(path):
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Create or replace `path` with `content` in one step; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(content))


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file to `path` in one step; see `write_atomically`."""
    with _naming_the_path(source, "read"), open(source, "rb") as original:
        write_atomically(path, lambda file: shutil.copyfileobj(original, file))


def make_unique_directory(parent: Path, name: str) -> Path:
    """Create a directory that nobody had before: `name`, or `name_1`, `name_2`, … when taken.

    `mkdir` is the claim, so two processes that race for a name get two directories. `parent` is made if missing.

    Raises:
        PersistenceError: The directory cannot be made; names it.
    """
    with _naming_the_path(parent / name, "create"):
        parent.mkdir(parents=True, exist_ok=True)
        suffix = 0
        while True:
            candidate = parent / (f"{name}_{suffix}" if suffix else name)
            try:
                candidate.mkdir()
            except FileExistsError:
                suffix += 1
            else:
                return candidate


@contextmanager
def _naming_the_path(path: Path, action: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PersistenceError(f"Cannot {action} {path}: {error.strerror or error}.{_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return " Free some space or choose another directory."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return " Check that the directory still exists."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return " Choose a directory you may write to."
    return ""


def _sync_directory(directory: Path) -> None:
    """Make the rename itself survive a power cut, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)
