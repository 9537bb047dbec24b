"""Measuring packages that may not be installed, and that talk while they are imported."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
from types import ModuleType

from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)


def require_meter_package(package: str, extra: str) -> None:
    """Make sure that a package is installed, without importing it.

    Args:
        package: Import name, also the name of the energy backend that needs it.
        extra: The extra of this package that installs it.

    Raises:
        EnergyError: It is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise EnergyError(
            f"the {package} energy backend needs the package {package}, which is not installed. "
            f'Install it with: pip install "llenergymeasure[{extra}]"'
        )


def import_meter_package(package: str, extra: str) -> ModuleType:
    """Import a package; what it prints meanwhile goes to the log.

    Args:
        package: The package, or a module of it.
        extra: See `require_meter_package`.

    Raises:
        EnergyError: It is not installed, or cannot be imported.
    """
    require_meter_package(package.partition(".")[0], extra)
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            module = importlib.import_module(package)
    except Exception as error:
        raise EnergyError(f"{package} is installed and cannot be imported: {type(error).__name__}: {error}") from error
    if chatter.getvalue():
        logger.debug("While importing %s: %s", package, chatter.getvalue().strip())
    return module
