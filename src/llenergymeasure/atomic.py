"""Files that are either whole or absent, and directories that belong to one writer.

    write to .name.XXXX.tmp -> flush -> fsync -> rename to name -> fsync the directory

A reader never sees half a file, and after a power cut the old or the new content is there, never a mixture. A file of a
known name may have been planted by somebody else: it is opened without following links, and used only if it is ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from llenergymeasure.exceptions import PersistenceError

_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES})
"""What file systems answer that cannot sync a directory; the rename itself has been done by then."""

_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of files that are being written, see `write_atomically`."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace a file, which `write` fills, in one step; its directory must exist.

    Raises:
        PersistenceError: The disk is full, the directory is gone, permission is missing, or `path` is a device or a
            pipe, which a file must not take the place of; names it. Nothing is left behind, and a previous file is
            untouched. Errors of `write` other than `OSError` pass through.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with naming_the_path(path):
        _refuse_devices(path)
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


def is_unfinished(path: Path) -> bool:
    """Whether a file is what a killed process leaves of one that it was writing."""
    return _TEMPORARY.fullmatch(path.name) is not None


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file to `path` in one step; see `write_atomically`."""
    with naming_the_path(source, "read"), open(source, "rb") as original:
        write_atomically(path, lambda file: shutil.copyfileobj(original, file))


def open_ours(path: Path, flags: int) -> int:
    """Open a file that only we make, or make it, and never change one that somebody put in its place; a descriptor.

    Args:
        flags: As for `os.open`. What is there is not truncated: it may not be ours to empty.

    Raises:
        PersistenceError: It cannot be opened, or is a link, no plain file, or another user's; names `path`.
    """
    with naming_the_path(path):
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            if problem := _not_ours(os.fstat(descriptor), os.stat(path.parent)):
                raise PersistenceError(f"{path} is not used: {problem}. Look who put it there, and remove it.")
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def read_plain_file(path: Path, *, follow_links: bool = True) -> bytes:
    """The content of a file; a pipe or a device, which may have no end, is refused.

    Args:
        follow_links: `False` for a file that is never a link unless somebody planted it.

    Raises:
        OSError: It is missing, cannot be read, or is no plain file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags if follow_links else flags | os.O_NOFOLLOW), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        return file.read()


def make_directories(path: Path) -> None:
    """Create a directory and the parents it lacks; each is in its own parent for good when this returns.

    Raises:
        OSError: One cannot be made, or something else is in its place.
    """
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for directory in missing:
        _sync_directory(directory.parent)


def make_unique_directory(parent: Path, name: str) -> Path:
    """Create a directory that nobody had before: `name`, or `name_1`, `name_2`, … when taken.

    `mkdir` is the claim, so two processes that race for a name get two directories. `parent` is made if missing.

    Raises:
        PersistenceError: The directory cannot be made; names it.
    """
    with naming_the_path(parent / name, "create"):
        make_directories(parent)
        suffix = 0
        while True:
            candidate = parent / (f"{name}_{suffix}" if suffix else name)
            try:
                candidate.mkdir()
            except FileExistsError:
                suffix += 1
            else:
                _sync_directory(parent)
                return candidate


@contextmanager
def naming_the_path(path: Path, action: str = "write") -> Iterator[None]:
    """Turn an `OSError` of the block into a `PersistenceError` that names what could not be done, to what, and why.

    Args:
        action: A verb; the advice that comes with it is for what is to be written.
    """
    try:
        yield
    except OSError as error:
        raise PersistenceError(f"Cannot {action} {path}: {error.strerror or error}.{_advice(error)}") from error


def _refuse_devices(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
            raise PersistenceError(f"Cannot write {path}: it is a device or a pipe. Name a file.")


def _not_ours(found: os.stat_result, directory: os.stat_result) -> str | None:
    """Why a file in `directory` is not one that we have made; `None`: it is."""
    if not stat.S_ISREG(found.st_mode):
        return "it is not a plain file"
    if found.st_nlink != 1:
        return "it has another name elsewhere (a hard link)"
    if found.st_uid not in (os.geteuid(), directory.st_uid):
        return f"it belongs to another user (uid {found.st_uid})"
    return None


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return " Free some space or choose another directory."
    if error.errno == errno.ELOOP:
        return " It is a symbolic link: look who put it there, and remove it."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return " Check that the directory still exists."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return " Choose a directory you may write to."
    return ""


def _sync_directory(directory: Path) -> None:
    """Make a new name in `directory` survive a power cut, where the file system can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
