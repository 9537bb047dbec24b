"""What an engine does to the process around it, held in: its random numbers and what it says.

Figures must depend on the seed alone, and the process is left as it was found. An engine's warnings speak to the
programmer who called it (deprecations, casts, retries), so they are kept in this package's log as information; what
matters to a figure is found out and told by this package itself. Its errors stay errors.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # without any handler, logging would print warnings to stderr on its own

HUB_LOGGERS: Final = ("transformers", "huggingface_hub")
"""Loggers of what every engine finds its models with."""


@contextmanager
def seeded(seed: int, stream: int = 0) -> Iterator[None]:
    """Seed Python's, numpy's (if loaded) and PyTorch's generators, and put their states back afterwards.

    Args:
        seed: The experiment's seed, below 2^32.
        stream: Tells apart the uses of one seed, so that two batches do not draw the same numbers.
    """
    derived = random.Random(f"{seed}/{stream}").getrandbits(32)
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        try:
            random.seed(derived)
            if numpy:
                numpy.random.seed(derived)
            torch.manual_seed(derived)
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)


@contextmanager
def engine_output_logged(engine_loggers: tuple[str, ...] = ()) -> Iterator[None]:
    """While this is open, an engine's messages, warnings and progress bars go to the log or nowhere.

    Args:
        engine_loggers: Names of the loggers of the engine and its libraries, beside `HUB_LOGGERS`.
    """
    from transformers.utils import logging as transformers_logging

    handler = _ForwardHandler()
    had_bars = transformers_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in (*HUB_LOGGERS, *engine_loggers)]
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


def _log_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    logger.info("%s: %s", category.__name__, message)
