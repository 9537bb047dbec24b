"""Small and read-only file systems for tests; needs root, and skips the test without."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[Path]:
    """A file system in memory, mounted at `directory` (made if missing) with `options`, for a `with` block."""
    directory.mkdir(parents=True, exist_ok=True)
    if shutil.which("mount") is None:
        pytest.skip("cannot mount a file system: there is no mount command")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)  # somebody may hold a file of it open


def fill(disk: Path, leave_pages: int) -> None:
    """Fill a file system until so many pages are left."""
    stat = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * (stat.f_bsize * (stat.f_bavail - leave_pages)))
