"""One measurement at a time in this process: two at once would measure each other, and share one set of seeds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llenergymeasure.exceptions import ExperimentError


class _Turn:
    """Whose turn it is; `holder` is the thread that has it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holder: int | None = None


_turn = _Turn()
if hasattr(os, "register_at_fork"):  # the thread that had the turn is not in the child
    os.register_at_fork(after_in_child=_turn.__init__)  # type: ignore[misc]


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread of this process measures, and let none begin until the block is over.

    Raises:
        ExperimentError: This thread is measuring already, so it would wait for itself.
    """
    if _turn.holder == threading.get_ident():
        raise ExperimentError(
            "a measurement was started from within another one, by a callback or a signal handler. "
            "Start it when the first one has returned."
        )
    with _turn.lock:
        _turn.holder = threading.get_ident()
        try:
            yield
        finally:
            _turn.holder = None
