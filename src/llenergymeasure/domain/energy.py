"""Energy of one measurement window: the figure, how it was got, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from llenergymeasure.domain.base import EnergyMethod, EnergyScope, Record

BaselineMethod = Literal["fresh", "cached", "unavailable"]
"""Where an idle power came from: measured for this run, reused from this session, or not to be had."""

BudgetKind = Literal["gain", "counter_resolution", "sampling", "aliasing", "sensor", "model", "baseline", "cycles"]
"""What a line of the error budget is about. Only `gain` cancels when two runs on one board are compared."""


class EnergyBreakdown(Record):
    """Raw and baseline-adjusted energy, with the provenance of both."""

    raw_j: float = Field(description="Energy of the window as metered, in joules; never reduced by the baseline.")
    adjusted_j: float | None = Field(
        default=None, description="raw_j minus baseline power x window length, in joules; signed."
    )
    baseline_power_w: float | None = Field(
        default=None, description="Idle power of the same devices before the model was loaded, in watts."
    )
    baseline_method: BaselineMethod | None = Field(
        default=None, description="Whether the idle power was measured for this run, reused, or not to be had."
    )
    baseline_timestamp: datetime | None = Field(default=None, description="When the idle power was measured (UTC).")
    baseline_cache_age_sec: float | None = Field(
        default=None, description="Age of a reused idle power when the run began, in seconds."
    )
    meter: str | None = Field(default=None, description="Energy backend that measured, and the sensor it read.")
    method: EnergyMethod | None = Field(default=None, description="How raw_j was found.")
    scope: EnergyScope | None = Field(default=None, description="What raw_j includes.")
    second_method: EnergyMethod | None = Field(default=None, description="The other method, where two were possible.")
    second_method_j: float | None = Field(default=None, description="Energy by the other method, in joules.")
    disagreement_pct: float | None = Field(
        default=None, description="Difference of the second method from raw_j, in per cent of raw_j; signed."
    )
    cpu_j: float | None = Field(
        default=None, description="Energy of the CPU packages beside a GPU run, in joules; never part of raw_j there."
    )
    dram_j: float | None = Field(
        default=None, description="Energy of the DRAM beside a GPU run, in joules; never part of raw_j there."
    )


class EnergyAudit(Record):
    """Hardware counter against the integral of power samples, over one window."""

    counter_j: float = Field(description="Difference of the hardware counter, in joules.")
    integral_j: float = Field(description="Integral of the power samples, in joules.")
    fused_j: float | None = Field(
        default=None, description="Counter and samples fused at the window's edges, in joules."
    )
    disagreement_pct: float = Field(description="Integral minus counter, in per cent of the counter; signed.")
    bound_pct: float = Field(description="Largest disagreement that both stated uncertainties allow, in per cent.")
    agrees: bool = Field(description="Whether the disagreement is within the bound.")


class BudgetComponent(Record):
    """One line of an energy figure's error budget."""

    name: str = Field(description="What the error comes from.")
    kind: BudgetKind = Field(description="Class of the error; `gain` cancels in comparisons on one board.")
    half_width_j: float = Field(ge=0, description="95 % half-width, in joules.")
    relative_pct: float | None = Field(default=None, description="The same in per cent of the energy.")
    note: str = Field(default="", description="How the size was arrived at.")


class EnergyUncertainty(Record):
    """95 % half-widths of an energy figure, for publishing and for comparing, and the budget they came from."""

    absolute_j: float = Field(ge=0, description="Half-width in joules with the sensor's gain: for publishing.")
    comparative_j: float = Field(
        ge=0, description="Half-width in joules without the gain: for runs compared on the same board."
    )
    absolute_per_token_j: float | None = Field(
        default=None, description="Absolute half-width in joules per output token."
    )
    comparative_per_token_j: float | None = Field(
        default=None, description="Comparative half-width in joules per output token."
    )
    absolute_adjusted_j: float | None = Field(
        default=None, description="Absolute half-width of the baseline-adjusted energy, in joules."
    )
    comparative_adjusted_j: float | None = Field(
        default=None, description="Comparative half-width of the baseline-adjusted energy, in joules."
    )
    budget: list[BudgetComponent] = Field(
        default_factory=list, description="Components; those of kind `baseline` count for adjusted energy only."
    )


def absolute_half_width(components: Iterable[BudgetComponent]) -> float:
    """95 % half-width in joules with the gain: for publishing."""
    return math.hypot(*(component.half_width_j for component in components))


def comparative_half_width(components: Iterable[BudgetComponent]) -> float:
    """95 % half-width in joules without the gain: for runs compared on one board, or two readings of one sensor."""
    return absolute_half_width(component for component in components if component.kind != "gain")


def sum_budgets(budgets: Iterable[Iterable[BudgetComponent]]) -> tuple[BudgetComponent, ...]:
    """The budget of a sum: errors of one name in quadrature, gains, which may share a cause, linearly."""
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
        components: The error budget, 95 % half-widths in joules.
        output_tokens: Output tokens of the window, for the figures per token.
        above_idle: Size of adjusted energy as a share of the raw energy.
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
