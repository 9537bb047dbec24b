"""SIGTERM and a closed terminal end a command as Ctrl-C does: orderly, with everything torn down."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `KeyboardInterrupt` for the length of a `with` block; for the main thread only.

    A signal that is ignored stays so: that is how `nohup` works.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    endings = [name for name in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) == signal.SIG_DFL]
    for name in endings:
        signal.signal(name, interrupt)
    try:
        yield
    finally:
        for name in endings:
            signal.signal(name, signal.SIG_DFL)
