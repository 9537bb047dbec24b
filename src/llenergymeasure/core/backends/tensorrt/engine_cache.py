"""Built engines, kept: one directory for each set of build-time settings, made by one process, whole or absent.

    lock → is it there, and whole? ── yes → use it
                │ no
                └ build beside → list of contents with checksums → fsync → rename

A build takes minutes and gigabytes, so two experiments that need the same one wait for each other. What a killed
process leaves is removed by the next builder, and an entry whose files are not those that were published is built anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from llenergymeasure.atomic import make_directories, naming_the_path, read_plain_file
from llenergymeasure.exceptions import BackendError, PersistenceError

CONTENTS: Final = "llenergymeasure.json"
"""File of an entry that lists the others, written last."""

BLOCK_BYTES: Final = 1 << 20
"""Of a file that is read for its checksum."""

logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """Where built engines are kept."""
    return Path.home() / ".llenergymeasure" / "trt-engines"


def entry_name(key: Mapping[str, Any]) -> str:
    """Name of the entry for `key`, which is JSON-ready: the same for equal keys, on every machine."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def files_identity(directory: Path) -> dict[str, tuple[int, int]]:
    """What a checkpoint in a directory is known by, where no commit names it: each file's size and change (ns)."""
    found = {path: path.stat() for path in sorted(directory.iterdir()) if path.is_file()}
    return {path.name: (status.st_size, status.st_mtime_ns) for path, status in found.items()}


def cached_engine(root: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The directory of the engine for `key`; built by `build`, which gets an empty directory, where there is none.

    Raises:
        BackendError: It cannot be written (the disk is full, or permission is missing), or `build` failed so.
    """
    path = root / entry_name(key)
    try:
        make_directories(root)
        with naming_the_path(path), _locked(root / f"{path.name}.lock"):
            if _is_whole(path):
                return path
            _build(path, key, build)
    except PersistenceError as error:
        raise BackendError(f"the built engine cannot be kept: {error}") from error
    return path


def _build(path: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    unfinished = path.with_name(f".{path.name}.building")
    for remains in (path, unfinished):
        if remains.exists():
            logger.warning("A built engine is damaged or unfinished, and is removed: %s", remains)
            shutil.rmtree(remains)
    unfinished.mkdir()
    try:
        build(unfinished)
        _seal(unfinished, key)
        os.rename(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)  # the first error is the one to tell
        raise
    _sync(path.parent)


def _seal(directory: Path, key: Mapping[str, Any]) -> None:
    """List the contents, and have all of it on the disk."""
    contents = {"key": key, "files": _checksums(directory)}
    (directory / CONTENTS).write_text(json.dumps(contents, indent=1, sort_keys=True))
    for path in _files(directory):
        _sync(path)
    _sync(directory)


def _is_whole(path: Path) -> bool:
    """Whether an entry has the very files that were published."""
    try:
        contents = json.loads(read_plain_file(path / CONTENTS))
        return bool(contents["files"]) and _checksums(path) == contents["files"]
    except (OSError, PersistenceError, ValueError, KeyError, TypeError):
        return False


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _checksums(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): _checksum(path) for path in _files(directory) if path.name != CONTENTS}


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process of this machine; the kernel gives it back when that ends, however it does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a worker that was forked meanwhile still has it open
        os.close(descriptor)
