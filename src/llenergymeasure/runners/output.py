"""What a child prints: its beginning and its end kept in a file, its lines repeated for whoever listens."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import IO, BinaryIO, Final

HEAD_BYTES: Final = 4_000_000
"""Output kept from the beginning, written as it comes."""

TAIL_BYTES: Final = 256_000
"""Output kept from the end, where errors usually are."""

_CHUNK_BYTES: Final = 65_536

_CRASH_DUMP: Final = "Fatal Python error:"

_log = logging.getLogger(__name__)
_echo = logging.getLogger("llenergymeasure.child")


class ChildLog:
    """Drains a child's output into a file, so that a child that prints without end fills neither pipe nor disk.

    The beginning is written as it comes, the end once it is over. Every line of the beginning also goes to the logger
    `llenergymeasure.child` at level DEBUG.
    """

    def __init__(self, path: Path, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._path = path
        self._head_left = head_bytes
        self._tail_bytes = tail_bytes
        self._beyond_head = 0
        self._recent = bytearray()
        self._unfinished_line = b""
        self.bytes_read = 0

    def drain(self, source: IO[bytes]) -> None:
        """Read `source` to its end and close it."""
        with source:
            try:
                with open(self._path, "ab", buffering=0) as file:
                    self._copy(source, file)
            except OSError as error:
                _log.warning("Cannot keep the child's output in %s: %s", self._path, error)
                while self._read(source):  # the child must not block on a full pipe
                    pass

    def recent(self) -> str:
        """The end of the output so far."""
        return bytes(self._recent[-_CHUNK_BYTES:]).decode("utf-8", "replace")

    def last_line(self) -> str:
        """The last line that is not blank, or an empty text; Python's dump of the stack does not count."""
        return last_line_of(self.recent())

    def _copy(self, source: IO[bytes], file: BinaryIO) -> None:
        while chunk := self._read(source):
            head = chunk[: self._head_left]
            self._head_left -= len(head)
            self._beyond_head += len(chunk) - len(head)
            if head:
                file.write(head)
                self._echo_lines(head)
        kept = min(self._beyond_head, self._tail_bytes)
        if self._beyond_head > kept:
            file.write(f"\n[… {self._beyond_head - kept} bytes left out …]\n".encode())
        file.write(self._recent[len(self._recent) - kept :])

    def _read(self, source: IO[bytes]) -> bytes:
        data = os.read(source.fileno(), _CHUNK_BYTES)
        self.bytes_read += len(data)
        self._recent += data
        del self._recent[: -max(self._tail_bytes, _CHUNK_BYTES)]
        return data

    def _echo_lines(self, data: bytes) -> None:
        if _echo.isEnabledFor(logging.DEBUG):
            *lines, self._unfinished_line = (self._unfinished_line + data).split(b"\n")
            for line in lines:
                _echo.debug("%s", line.decode("utf-8", "replace"))


def last_line_of(text: str) -> str:
    """See `ChildLog.last_line`."""
    return next((line.strip() for line in reversed(text.partition(_CRASH_DUMP)[0].split("\n")) if line.strip()), "")
