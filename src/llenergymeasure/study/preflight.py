"""What must hold for a whole study before its first experiment starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llenergymeasure.config.models import StudyConfig
from llenergymeasure.constants import VERSION
from llenergymeasure.exceptions import PreFlightError

if TYPE_CHECKING:
    from llenergymeasure.config.user_config import UserConfig


def check_backends(study: StudyConfig, machine: UserConfig) -> None:
    """Refuse several backends in one Python environment: their engines need different releases of the same packages.

    Args:
        study: The study.
        machine: The user's settings, which say where each backend runs.

    Raises:
        PreFlightError: More than one backend would run here; shows the settings that mend it.
    """
    backends = list(dict.fromkeys(config.backend for config in study.experiments))
    here = [backend for backend in backends if getattr(machine.runners, backend) == "local"]
    if len(here) < 2:
        return
    from llenergymeasure.config.user_config import get_user_config_path

    settings = "\n".join(f"      {backend}: docker:llenergymeasure/{backend}:{VERSION}-cuda12" for backend in backends)
    raise PreFlightError(
        [
            f"the study uses several backends ({', '.join(backends)}), and {', '.join(here)} would run in this Python "
            f"environment, where they cannot live side by side. Run them in Docker: put this into "
            f"{get_user_config_path()}\n    runners:\n{settings}\n    or make one study per backend."
        ]
    )
