"""The figures that the record of a process and the result of an experiment share, each declared once.

A common base would change their order in files. Window, breakdown, uncertainty and phases take more than their own
values to merge: see `results.aggregation`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llenergymeasure.domain.base import (
    Column,
    Count,
    First,
    JsonDict,
    Merge,
    Methodology,
    Total,
    first,
    merge_records,
    of_all,
    of_known,
    total,
    united,
)
from llenergymeasure.domain.energy import EnergyAudit, EnergyBreakdown, EnergyUncertainty, merge_audits
from llenergymeasure.domain.environment import DatasetInfo, MeasurementBoundary, merge_boundaries
from llenergymeasure.domain.metrics import FlopsResult, PhaseBreakdown, ThermalThrottleInfo, WarmupResult, merge_flops

BackendFigure = Annotated[First[str], Field(description="Inference engine."), Column(5)]
BackendVersionFigure = Annotated[First[str | None], Field(description="Version of the inference engine."), Column(6)]
EffectiveConfigFigure = Annotated[First[JsonDict], Field(description="Resolved config, engine defaults filled in.")]
MethodologyFigure = Annotated[
    Methodology,
    Field(
        description="`total`: warm-up off; `steady_state`: warm-up excluded; `windowed`: part of the generation only."
    ),
    Merge(first),
    Column(12, "", "What part of the run the window is"),
]
SteadyStateWindowFigure = Annotated[
    tuple[float, float] | None, Field(description="Start and end of the window, in seconds since the experiment began.")
]
DatasetFigure = Annotated[First[DatasetInfo | None], Field(description="The prompts.")]
ModelRevisionFigure = Annotated[First[str | None], Field(description="Commit of the loaded weights.")]
TruncatedPromptsFigure = Annotated[Count[int | None], Field(ge=0, description="Prompts cut to the input limit.")]
ExcludedSamplesFigure = Annotated[
    Count[int | None], Field(ge=0, description="Warm-up prompts left out; null when methodology is `total`.")
]
EnergyBreakdownFigure = Annotated[
    EnergyBreakdown | None, Field(description="Raw and adjusted energy, with provenance.")
]
EnergyAuditFigure = Annotated[
    EnergyAudit | None,
    Field(description="Hardware counter against power integral."),
    Merge(of_all(merge_audits), counted=True),
]
EngineEnergyFigure = Annotated[Total[float | None], Field(description="Joules by the engine's own meter; null: none.")]
UncertaintyFigure = Annotated[
    EnergyUncertainty | None,
    Field(description="95 % half-widths of the energy."),
    Column(
        22,
        "J/token",
        "95 % half-width of energy_per_token_j, for publishing",
        name="energy_per_token_absolute_95_j",
        at="absolute_per_token_j",
    ),
    Column(
        23,
        "J/token",
        "95 % half-width of energy_per_token_j, for runs on the same board",
        name="energy_per_token_comparative_95_j",
        at="comparative_per_token_j",
    ),
]
UncertaintyPerDeviceFigure = Annotated[
    dict[str, EnergyUncertainty],
    Field(description="The same for the energy of each device."),
    Merge(united, counted=True),
]
MeasurementBoundaryFigure = Annotated[
    MeasurementBoundary | None, Field(description="What the energy includes."), Merge(of_known(merge_boundaries))
]
BaselinePowerFigure = Annotated[
    float | None,
    Field(description="Idle power of the devices, in watts."),
    Merge(total, counted=True),
    Column(26, "W", "Idle power of the devices"),
]
IdleResidentPowerFigure = Annotated[
    float | None, Field(description="Idle power with the model in memory, in watts."), Merge(total, counted=True)
]
PhasesFigure = Annotated[PhaseBreakdown | None, Field(description="Prefill and decode.")]
FlopsFigure = Annotated[
    FlopsResult | None, Field(description="How `total_flops` was counted."), Merge(of_all(merge_flops))
]
KvCacheFigure = Annotated[Total[float | None], Field(description="Memory of the key-value cache, in MB (10^6 B).")]
ThrottleFigure = Annotated[
    ThermalThrottleInfo | None, Field(description="Throttling in the window."), Merge(of_known(merge_records))
]
WarmupFigure = Annotated[
    WarmupResult | None, Field(description="How the warm-up went."), Merge(of_known(merge_records))
]
