"""Emissions and price of energy, from factors that the user gave; without a factor there is no figure."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from llenergymeasure.domain.base import Record

JOULES_PER_KWH: Final = 3.6e6


class FootprintFactors(Record):
    """What a kilowatt-hour means where the machine stands."""

    carbon_intensity_gco2_kwh: float | None = Field(
        default=None, ge=0, description="Carbon intensity of the electricity, in g CO2e per kWh; null: not given."
    )
    pue: float = Field(default=1.0, ge=1, description="Power usage effectiveness: facility energy over IT energy.")
    electricity_price_kwh: float | None = Field(
        default=None, ge=0, description="Price of the electricity, in `currency` per kWh; null: not given."
    )
    currency: str = Field(default="USD", description="Currency of the price.")

    def co2_g(self, energy_j: float | None) -> float | None:
        """Grams of CO2e for `energy_j` joules at the device, or `None` where either is unknown."""
        return self._times(energy_j, self.carbon_intensity_gco2_kwh)

    def cost(self, energy_j: float | None) -> float | None:
        """Price of `energy_j` joules at the device in `currency`, or `None` where either is unknown."""
        return self._times(energy_j, self.electricity_price_kwh)

    def _times(self, energy_j: float | None, per_kwh: float | None) -> float | None:
        if energy_j is None or per_kwh is None:
            return None
        return energy_j / JOULES_PER_KWH * self.pue * per_kwh
