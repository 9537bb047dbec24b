"""Trying again when something outside the program fails for a moment: the Hub, the Docker daemon.

Never wrap a measurement in this: a second attempt would measure a machine that the first one has warmed up.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def retry_on_error(
    max_retries: int = 3,
    delay_seconds: float = 1.0,
    backoff_factor: float = 2.0,
    *,
    exceptions: tuple[type[Exception], ...] = (ConnectionError, TimeoutError),
    is_transient: Callable[[Exception], bool] = lambda error: True,
    sleep: Callable[[float], None] = time.sleep,
    what: str | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that passing failures are tried again, with growing pauses.

    Args:
        max_retries: Attempts after the first; 0 switches retrying off.
        delay_seconds: Pause before the first retry, in seconds.
        backoff_factor: Each further pause is this many times the one before; 1 keeps them equal.
        exceptions: Only these are tried again; everything else passes through at once.
        is_transient: Decides about an instance of `exceptions` whether another attempt can help.
        sleep: Waits for a number of seconds; tests pass one that only remembers.
        what: What is attempted, for the log; the function's name by default.

    Returns:
        A decorator that keeps the function's signature. The last error is raised unchanged.

    Raises:
        ValueError: A negative count or pause, or a factor below 1.
    """
    if max_retries < 0 or delay_seconds < 0 or backoff_factor < 1:
        raise ValueError(
            f"retry_on_error needs max_retries >= 0, delay_seconds >= 0 and backoff_factor >= 1, "
            f"got {max_retries}, {delay_seconds} and {backoff_factor}"
        )

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        name = what or getattr(function, "__qualname__", repr(function))

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            for attempt in range(max_retries):
                try:
                    return function(*args, **kwargs)
                except exceptions as error:
                    if not is_transient(error):
                        raise
                    pause_s = delay_seconds * backoff_factor**attempt
                    logger.warning(
                        "%s failed (%s: %s); retry %d of %d in %.1f s",
                        name,
                        type(error).__name__,
                        error,
                        attempt + 1,
                        max_retries,
                        pause_s,
                    )
                    sleep(pause_s)
            return function(*args, **kwargs)

        return wrapper

    return decorate
