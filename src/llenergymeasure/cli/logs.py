"""Where log messages go while a command runs: to stderr, warnings only unless `--verbose`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE_LOGGER = "llenergymeasure"


@contextmanager
def configured_logging(*, verbose: bool, quiet: bool = False) -> Iterator[None]:
    """Send the package's log messages to stderr for the length of a `with` block, then take the handler away.

    Args:
        verbose: Show everything, with times and modules.
        quiet: Show errors only.
    """
    logger = logging.getLogger(PACKAGE_LOGGER)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "%(message)s")
    )
    before = (logger.level, logger.propagate)
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
