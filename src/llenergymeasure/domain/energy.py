"""Energy of one measurement window: the figure, how it was got, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field

from llenergymeasure.domain.base import (
    AllOf,
    Column,
    EnergyMethod,
    EnergyScope,
    Largest,
    Merge,
    Record,
    Same,
    Total,
    complete,
    empty,
    largest,
    merge_records,
    of_known,
    optional,
    united,
)

BaselineMethod = Literal["fresh", "cached", "unavailable"]
"""Where an idle power came from: measured for this run, reused from this session, or not to be had; best first."""

NVML_REPRODUCIBILITY_NOTE: Final = (
    "Energy measured via NVML. Accuracy ±5 %; it varies with thermal state and system load. "
    "The same measurement_config_hash means the same workload, not the same joules."
)

BudgetKind = Literal[
    "gain", "counter_resolution", "sampling", "aliasing", "sensor", "clock", "model", "baseline", "cycles"
]
"""What a line of the error budget is about. Only `gain` cancels when two runs on one board are compared."""


def _worst_baseline(methods: Sequence[BaselineMethod | None]) -> BaselineMethod | None:
    return next((method for method in reversed(get_args(BaselineMethod)) if method in methods), None)


class EnergyBreakdown(Record):
    """Raw and baseline-adjusted energy, with the provenance of both."""

    raw_j: Total[float] = Field(
        description="Energy of the window as metered, in joules; never reduced by the baseline."
    )
    adjusted_j: float | None = optional("raw_j minus baseline power x window length, in joules; signed.")
    baseline_power_w: Total[float | None] = optional(
        "Idle power of the same devices before the model was loaded, in watts."
    )
    baseline_method: Annotated[BaselineMethod | None, Merge(_worst_baseline)] = optional(
        "Whether the idle power was measured for this run, reused, or not to be had."
    )
    baseline_timestamp: Annotated[datetime | None, Merge(of_known(min))] = optional(
        "When the idle power was measured (UTC)."
    )
    baseline_cache_age_sec: Largest[float | None] = optional(
        "Age of a reused idle power when the run began, in seconds."
    )
    meter: Annotated[Same[str | None], Column(29, "", "Energy backend that measured", "energy_meter")] = optional(
        "Energy backend that measured, and the sensor it read."
    )
    meter_version: Same[str | None] = optional("Version of that backend, where it is another package's.")
    method: Annotated[Same[EnergyMethod | None], Column(27, "", "How the energy was found", "energy_method")] = (
        optional("How raw_j was found.")
    )
    scope: Annotated[Same[EnergyScope | None], Column(28, "", "What the energy includes", "energy_scope")] = optional(
        "What raw_j includes."
    )
    second_method: Same[EnergyMethod | None] = optional("The other method, where two were possible.")
    second_method_j: Total[float | None] = optional("Energy by the other method, in joules.")
    disagreement_pct: float | None = optional(
        "Difference of the second method from raw_j, in per cent of raw_j; signed."
    )
    cpu_j: Largest[float | None] = optional(
        "Energy of the CPU packages beside a GPU run, in joules; never part of raw_j there."
    )
    dram_j: Largest[float | None] = optional(
        "Energy of the DRAM beside a GPU run, in joules; never part of raw_j there."
    )


def merge_breakdowns(
    counted: Sequence[EnergyBreakdown | None], everyone: Sequence[EnergyBreakdown | None], adjusted_j: float | None
) -> EnergyBreakdown | None:
    """One breakdown of the processes whose energy counts, `adjusted_j` being their energy above idle.

    CPU packages and DRAM belong to the machine: every process saw all of them, and the largest figure is that of the
    widest window.
    """
    parts = complete(counted)
    if parts is None:
        return None
    if len(everyone) == 1:
        return parts[0]
    merged = merge_records(parts)
    return merged.model_copy(
        update={
            "adjusted_j": adjusted_j,
            "disagreement_pct": difference_pct(merged.second_method_j, merged.raw_j),
            "cpu_j": largest(part.cpu_j for part in everyone if part is not None),
            "dram_j": largest(part.dram_j for part in everyone if part is not None),
        }
    )


def energies_of_devices(processes: Sequence[Mapping[str, float | None]]) -> dict[str, float | None] | None:
    """Joules by device, `None` for one that could not be read; or `None` where none could."""
    by_device = united(processes)
    return by_device if any(joules is not None for joules in by_device.values()) else None


def energies_in_order(
    by_device: Mapping[str, float | None] | None, devices: Iterable[str]
) -> list[float | None] | None:
    """The same in the order of `devices`; those that are not among them follow."""
    if by_device is None:
        return None
    return [by_device.get(device) for device in dict.fromkeys((*devices, *by_device))]


class EnergyAudit(Record):
    """Hardware counter against the integral of power samples, over one window."""

    counter_j: Total[float] = Field(description="Difference of the hardware counter, in joules.")
    integral_j: Total[float] = Field(description="Integral of the power samples, in joules.")
    fused_j: Total[float | None] = optional("Counter and samples fused at the window's edges, in joules.")
    disagreement_pct: float = Field(
        description="Integral minus counter (fused, where it could be), in per cent of that; signed."
    )
    bound_pct: Largest[float] = Field(
        description="Largest disagreement that both stated uncertainties allow, in per cent."
    )
    agrees: AllOf[bool] = Field(description="Whether the disagreement is within the bound, of each board as of all.")


def merge_audits(parts: Sequence[EnergyAudit]) -> EnergyAudit:
    """Counter against integral, summed over devices; the bound is the widest of the single ones."""
    if len(parts) == 1:
        return parts[0]
    merged = merge_records(parts)
    counted_j = math.fsum(map(_counted_j, parts))
    disagreement_pct = difference_pct(merged.integral_j, counted_j) or 0.0
    agrees = merged.agrees and abs(disagreement_pct) <= merged.bound_pct
    return merged.model_copy(update={"disagreement_pct": disagreement_pct, "agrees": agrees})


def _counted_j(audit: EnergyAudit) -> float:
    """What an audit compared the integral with: the counter as sharp as it was had, which is not always `fused_j`."""
    ratio = 1.0 + audit.disagreement_pct / 100.0
    return audit.integral_j / ratio if ratio > 0 else audit.counter_j


class BudgetComponent(Record):
    """One line of an energy figure's error budget."""

    name: str = Field(description="What the error comes from.")
    kind: BudgetKind = Field(description="Class of the error; `gain` cancels in comparisons on one board.")
    half_width_j: float = Field(ge=0, description="95 % half-width, in joules.")
    relative_pct: float | None = optional("The same in per cent of the energy.")
    note: str = Field(default="", description="How the size was arrived at.")


class EnergyUncertainty(Record):
    """95 % half-widths of an energy figure, for publishing and for comparing, and the budget they came from."""

    absolute_j: float = Field(ge=0, description="Half-width in joules with the sensor's gain: for publishing.")
    comparative_j: float = Field(
        ge=0, description="Half-width in joules without the gain: for runs compared on the same board."
    )
    absolute_per_token_j: float | None = optional("Absolute half-width in joules per output token.")
    comparative_per_token_j: float | None = optional("Comparative half-width in joules per output token.")
    absolute_adjusted_j: float | None = optional("Absolute half-width of the baseline-adjusted energy, in joules.")
    comparative_adjusted_j: float | None = optional(
        "Comparative half-width of the baseline-adjusted energy, in joules."
    )
    budget: list[BudgetComponent] = empty(list, "Components; those of kind `baseline` count for adjusted energy only.")


def absolute_half_width(components: Iterable[BudgetComponent]) -> float:
    """95 % half-width in joules with the gain: for publishing."""
    return math.hypot(*(component.half_width_j for component in components))


def comparative_half_width(components: Iterable[BudgetComponent]) -> float:
    """95 % half-width in joules without the gain: for runs compared on one board, or two readings of one sensor."""
    return absolute_half_width(component for component in components if component.kind != "gain")


def sum_budgets(budgets: Iterable[Iterable[BudgetComponent]]) -> tuple[BudgetComponent, ...]:
    """The budget of a sum: errors of one name in quadrature; gains, which may err in the same direction, linearly."""
    total: dict[str, BudgetComponent] = {}
    for part in (component for budget in budgets for component in budget):
        known = total.get(part.name)
        if known is None:
            total[part.name] = part
        elif part.kind == "gain":
            total[part.name] = resized(known, known.half_width_j + part.half_width_j)
        else:
            total[part.name] = resized(known, math.hypot(known.half_width_j, part.half_width_j))
    return tuple(total.values())


def related(component: BudgetComponent, energy_j: float | None) -> BudgetComponent:
    """The same error, told in per cent of an energy in joules too."""
    return component.model_copy(
        update={"relative_pct": 100.0 * component.half_width_j / energy_j if energy_j else None}
    )


def resized(component: BudgetComponent, half_width_j: float) -> BudgetComponent:
    """The same error at another size in joules."""
    return component.model_copy(update={"half_width_j": half_width_j})


def combine_budget(
    components: Sequence[BudgetComponent], output_tokens: int | None = None, above_idle: float = 1.0
) -> EnergyUncertainty:
    """Combine independent error components into one statement.

    Components add in quadrature (GUM, JCGM 100:2008, 5.1.2, uncorrelated inputs). `gain` is left out of the comparative
    half-width because it is the same factor in both runs; `baseline` counts only where a baseline was subtracted. Idle
    power was read with the same gain, so that of adjusted energy is proportional to adjusted energy.

    Args:
        components: 95 % half-widths in joules.
        output_tokens: Of the window; without them there are no figures per token.
        above_idle: Size of adjusted energy as a fraction of the raw energy.
    """
    raw = [c for c in components if c.kind != "baseline"]
    absolute_j, comparative_j = absolute_half_width(raw), comparative_half_width(raw)
    has_baseline = len(raw) < len(components)
    gains_j = [above_idle * c.half_width_j for c in components if c.kind == "gain"]
    others_j = [c.half_width_j for c in components if c.kind != "gain"]
    return EnergyUncertainty(
        absolute_j=absolute_j,
        comparative_j=comparative_j,
        absolute_per_token_j=absolute_j / output_tokens if output_tokens else None,
        comparative_per_token_j=comparative_j / output_tokens if output_tokens else None,
        absolute_adjusted_j=math.hypot(*gains_j, *others_j) if has_baseline else None,
        comparative_adjusted_j=math.hypot(*others_j) if has_baseline else None,
        budget=list(components),
    )


def merge_uncertainties(
    parts: Sequence[EnergyUncertainty | None],
    energy_j: float | None,
    adjusted_j: float | None = None,
    output_tokens: int | None = None,
) -> EnergyUncertainty | None:
    """Half-widths of the sum of several boards' energies."""
    known = complete(parts)
    if known is None:
        return None
    above_idle = abs(adjusted_j) / energy_j if adjusted_j is not None and energy_j else 1.0
    if len(known) == 1:  # also where several processes share a device: its joules are divided by the tokens of all
        return combine_budget(known[0].budget, output_tokens, above_idle)
    lines = sum_budgets(part.budget for part in known)
    return combine_budget([related(line, energy_j) for line in lines], output_tokens, above_idle)


def difference_pct(second_j: float | None, first_j: float) -> float | None:
    """Second minus first, in per cent of the first; `None` where the second is unknown or the first is 0."""
    return 100.0 * (second_j - first_j) / first_j if second_j is not None and first_j else None


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
