"""Emissions and price of energy, from factors that the user gave; without a factor there is no figure."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from llenergymeasure.domain.base import Record, optional

JOULES_PER_KWH: Final = 3.6e6


class EmissionFactors(Record):
    """What a kilowatt-hour emits and costs where the machine stands."""

    carbon_intensity_gco2_kwh: float | None = optional(
        "Carbon intensity of the electricity, in g CO2e per kWh; null: not given.", ge=0
    )
    pue: float = Field(default=1.0, ge=1, description="Power usage effectiveness: facility energy over IT energy.")
    electricity_price_kwh: float | None = optional(
        "Price of the electricity, in `currency` per kWh; null: not given.", ge=0
    )
    currency: str = Field(default="USD", description="Currency of the price.")

    def co2_g(self, energy_j: float | None) -> float | None:
        """Grams of CO2e for `energy_j` joules at the device, or `None` where either is unknown."""
        return self._times(energy_j, self.carbon_intensity_gco2_kwh)

    def cost(self, energy_j: float | None) -> float | None:
        """Price of `energy_j` joules at the device in `currency`, or `None` where either is unknown."""
        return self._times(energy_j, self.electricity_price_kwh)

    def emissions_and_cost(self, energy_j: float | None) -> dict[str, Any]:
        """The fields of a result that follow from `energy_j` joules and these factors."""
        co2_g, cost = self.co2_g(energy_j), self.cost(energy_j)
        return {
            "co2_g": co2_g,
            "carbon_intensity_gco2_kwh": self.carbon_intensity_gco2_kwh,
            "cost": cost,
            "electricity_price_kwh": self.electricity_price_kwh,
            "currency": None if self.electricity_price_kwh is None else self.currency,
            "pue": None if co2_g is None and cost is None else self.pue,
        }

    def _times(self, energy_j: float | None, per_kwh: float | None) -> float | None:
        if energy_j is None or per_kwh is None:
            return None
        return energy_j / JOULES_PER_KWH * self.pue * per_kwh
