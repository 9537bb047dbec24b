"""Where log messages go while a command runs: to stderr, warnings only unless `--verbose`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TextIO

PACKAGE_LOGGER = "llenergymeasure"


if TYPE_CHECKING:
    _StderrHandler = logging.StreamHandler[TextIO]
else:
    _StderrHandler = logging.StreamHandler  # not generic at run time before Python 3.11


class _BesideBars(_StderrHandler):
    """Writes above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # not loaded: no bar was ever drawn
        with nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextmanager
def configured_logging(*, verbose: bool, quiet: bool = False) -> Iterator[None]:
    """Send the package's log messages to stderr for the length of a `with` block, then take the handler away.

    Args:
        verbose: Show everything, with times and modules.
        quiet: Show errors only.
    """
    logger = logging.getLogger(PACKAGE_LOGGER)
    handler = _BesideBars(sys.stderr)
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
