"""What an engine says while it loads and generates goes to this package's log, not to the user's terminal.

An engine's warnings speak to the programmer who called it (deprecations, casts, retries), so they are kept as
information; what matters to a figure is found out and told by this package itself. Its errors stay errors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # without any handler, logging would print warnings to stderr on its own

_ENGINE_LOGGERS = ("transformers", "huggingface_hub", "accelerate", "peft", "bitsandbytes")


class _ForwardHandler(logging.Handler):
    """Passes an engine's records on, marked with where they come from; what it says in every step, only once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = f"{record.name}: {record.getMessage()}"
        if message in self._said:
            return
        self._said.add(message)
        level = record.levelno if record.levelno >= logging.ERROR else min(record.levelno, logging.INFO)
        logger.log(level, "%s", message)


@contextmanager
def engine_output_logged() -> Iterator[None]:
    """While this is open, transformers' and peft's messages, warnings and progress bars go to the log or nowhere."""
    from transformers.utils import logging as transformers_logging

    handler = _ForwardHandler()
    had_bars = transformers_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in _ENGINE_LOGGERS]
    before = [(engine.handlers[:], engine.propagate) for engine in loggers]
    for engine in loggers:
        engine.handlers, engine.propagate = [handler], False
    transformers_logging.disable_progress_bar()  # and with it the Hub client's
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            yield
    finally:
        for engine, (handlers, propagate) in zip(loggers, before, strict=True):
            engine.handlers, engine.propagate = handlers, propagate
        if had_bars:
            transformers_logging.enable_progress_bar()


def _log_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    logger.info("%s: %s", category.__name__, message)
