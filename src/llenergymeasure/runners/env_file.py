"""Secrets on their way into a container: an env-file for the Docker client that no disk ever sees."""

from __future__ import annotations

import os
from collections.abc import Mapping

_OWNERS_ONLY = 0o600


class EnvFile:
    """A file of `NAME=value` lines in memory, its owner's only, that is there as long as this object is.

    Nothing is left of it on a disk, whatever kills this process.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._file = open(os.memfd_create("llem-env"), "w", encoding="utf-8")  # noqa: SIM115 (it lives as long as this)
        os.fchmod(self._file.fileno(), _OWNERS_ONLY)
        # Such a file has no way to write a line break, and no token has one: whoever pasted one meant what is before.
        self._file.writelines(f"{name}={''.join(value.split())}\n" for name, value in values.items())
        self._file.flush()

    @property
    def path(self) -> str:
        """Where processes of the same user find it."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
