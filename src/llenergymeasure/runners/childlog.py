"""What a child prints, kept in a file of bounded size: the beginning as it comes, the end once it is over."""

from __future__ import annotations

import logging
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, Final

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

    Every line of the kept beginning also goes to the logger `llenergymeasure.child` at level DEBUG.

    Args:
        source: The reading end of the child's output; closed by this object.
        path: The file to write.
        head_bytes: Most bytes kept from the beginning.
        tail_bytes: Most bytes kept from the end.
    """

    def __init__(
        self,
        source: Connection[Any, Any],
        path: Path,
        head_bytes: int = HEAD_BYTES,
        tail_bytes: int = TAIL_BYTES,
    ) -> None:
        self._source = source
        self._path = path
        self._head_left = head_bytes
        self._tail = bytearray()
        self._tail_bytes = tail_bytes
        self._left_out = 0
        self._recent = bytearray()
        self._unfinished_line = b""
        self._thread = threading.Thread(target=self._drain, name="llem-child-log", daemon=True)

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait for the end of the output, at most `timeout_s`: a stray process may keep the pipe open."""
        self._thread.join(timeout_s)

    def last_line(self) -> str:
        """The last line that is not blank, or an empty text; Python's dump of the stack does not count."""
        text = bytes(self._recent).decode("utf-8", "replace").partition(_CRASH_DUMP)[0]
        return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")

    def _drain(self) -> None:
        with self._source:
            try:
                with open(self._path, "ab", buffering=0) as file:
                    self._copy_to(file)
                    self._write_tail(file)
            except OSError as error:
                _log.warning("Cannot keep the child's output in %s: %s", self._path, error)
                while self._read():  # the child must not block on a full pipe
                    pass

    def _copy_to(self, file: BinaryIO) -> None:
        while chunk := self._read():
            head, rest = chunk[: self._head_left], chunk[self._head_left :]
            if head:
                self._head_left -= len(head)
                file.write(head)
                self._echo_lines(head)
            if rest:
                self._keep_tail(rest)

    def _keep_tail(self, data: bytes) -> None:
        self._tail += data
        surplus = len(self._tail) - self._tail_bytes
        if surplus > 0:
            del self._tail[:surplus]
            self._left_out += surplus

    def _write_tail(self, file: BinaryIO) -> None:
        if self._left_out:
            file.write(f"\n[… {self._left_out} bytes left out …]\n".encode())
        file.write(self._tail)

    def _read(self) -> bytes:
        data = os.read(self._source.fileno(), _CHUNK_BYTES)
        self._recent += data
        del self._recent[:-_CHUNK_BYTES]
        return data

    def _echo_lines(self, data: bytes) -> None:
        if not _echo.isEnabledFor(logging.DEBUG):
            return
        *lines, self._unfinished_line = (self._unfinished_line + data).split(b"\n")
        for line in lines:
            _echo.debug("%s", line.decode("utf-8", "replace"))
