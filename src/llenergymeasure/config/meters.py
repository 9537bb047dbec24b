"""The names that `energy.backend` may have: this package's meters, and those that installed packages register."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, WithJsonSchema

from llenergymeasure.config.open_choice import OpenChoice
from llenergymeasure.config.ssot import ENERGY_BACKENDS, ENERGY_GROUP

_METERS: Final = OpenChoice(("auto", *ENERGY_BACKENDS), ENERGY_GROUP)

registered_meters: Final = _METERS.registered

MeterName = Annotated[str, AfterValidator(_METERS.check), WithJsonSchema(_METERS.json_schema())]
