"""Signals as something a loop can look at: the first asks for an orderly end, the second for a quick one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

POLL_INTERVAL_S: Final = 0.25
"""How often whoever waits looks at an `Interrupt`, in seconds."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """How often the user asked to stop."""

    def __init__(self) -> None:
        self._requests = 0

    def request(self) -> None:
        """Ask once more; safe in a signal handler and in any thread."""
        self._requests += 1

    @property
    def requested(self) -> bool:
        """Whether to tear down and end."""
        return self._requests >= 1

    @property
    def urgent(self) -> bool:
        """Whether to end without tearing down: somebody asked twice."""
        return self._requests >= 2


@contextmanager
def signals_as(interrupt: Interrupt) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into requests to `interrupt` for the length of a `with` block.

    A signal that is ignored stays so: that is how `nohup` works. Outside the main thread Python cannot install
    handlers; there the block runs without them, and whoever owns the main thread keeps its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(signum: int, frame: FrameType | None) -> None:
        interrupt.request()

    heard = [name for name in _SIGNALS if signal.getsignal(name) != signal.SIG_IGN]
    previous: dict[signal.Signals, Any] = {name: signal.signal(name, on_signal) for name in heard}
    try:
        yield
    finally:
        for name, handler in previous.items():
            # None: installed by something other than Python, which cannot be put back from here.
            signal.signal(name, signal.SIG_DFL if handler is None else handler)
