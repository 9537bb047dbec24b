"""A meter is available when it has just given a reading; this module holds what that means for all of them."""

from __future__ import annotations

import logging
from typing import Protocol

from llenergymeasure.core.energy.types import EnergyBackend
from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)


class Meter(EnergyBackend, Protocol):
    """An energy backend that can show that it works."""

    def prove(self) -> str:
        """Take a reading and describe it in a few words, e.g. `GPU 0 draws 61.2 W`.

        Raises:
            EnergyError: There is none to be had; the message says why and what to do.
        """


def is_proven(meter: Meter) -> bool:
    """Whether `meter` gives a reading here and now; the reason against it goes to the log."""
    try:
        meter.prove()
    except EnergyError as error:
        logger.info("The %s energy backend is not available: %s", meter.name, error)
        return False
    return True
