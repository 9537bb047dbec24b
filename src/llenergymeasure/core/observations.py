"""What is seen of one experiment, as the harness hands it to the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from llenergymeasure.config.models import ExperimentConfig, MeasurementConfig
from llenergymeasure.core.backends.protocol import LoadedModel, MemoryStats, RequestOutput
from llenergymeasure.core.baseline import Baseline
from llenergymeasure.core.energy.part import Span, energy_between
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.metrics.counting import TokenCounts, count_tokens, count_tokens_between, full_batch_interval
from llenergymeasure.core.warmup import Warmup
from llenergymeasure.core.window import Window
from llenergymeasure.datasets.types import PromptSet, PromptTokenizer
from llenergymeasure.domain.base import Methodology
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import RawProcessResult
from llenergymeasure.domain.readable import duration
from llenergymeasure.domain.warnings import MeasurementWarning
from llenergymeasure.exceptions import ExperimentError


@dataclass(frozen=True, slots=True)
class Observations:
    """Everything that was seen of one experiment on one process, before any arithmetic.

    Args:
        engine: Name and version of the inference engine.
        began_s: Start of the experiment on the measurement clock, in seconds.
        began_at: The same moment for people (UTC).
        model: Read back from the engine after loading.
        devices: Those the engine really used.
        tokenizer: Turns ids into text where that was asked for.
    """

    config: ExperimentConfig
    engine: tuple[str, str]
    began_s: float
    began_at: datetime
    environment: EnvironmentSnapshot
    prompts: PromptSet
    baseline: Baseline
    warmup: Warmup
    window: Window
    model: LoadedModel
    memory: MemoryStats
    devices: tuple[DeviceId, ...]
    tokenizer: PromptTokenizer
    preflight_warnings: tuple[MeasurementWarning, ...] = ()


@runtime_checkable
class MetricsCollector(Protocol):
    """Turns what was seen of an experiment into a record."""

    def collect(
        self, seen: Observations, experiment_id: str, ended_at: datetime, process_index: int = 0
    ) -> RawProcessResult:
        """Compute one process's record.

        Raises:
            ExperimentError: The counted part of the window holds no output token.
        """


@dataclass(frozen=True, slots=True)
class MeasurementSlice:
    """The part of a window that goes into the headline figures, its instants on the measurement clock in seconds."""

    methodology: Methodology
    start_s: float
    end_s: float
    tokens: TokenCounts
    energy: EnergyMeasurement

    def whole_requests(self, outputs: Sequence[RequestOutput]) -> Sequence[RequestOutput]:
        """Those of `outputs` whose latencies belong to the slice: all, or those begun and ended within it."""
        if self.methodology != "windowed":
            return outputs
        return [
            output
            for output in outputs
            if output.token_times_s is not None
            and self.start_s <= output.started_s
            and output.token_times_s[-1] <= self.end_s
        ]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


def measurement_slice(config: ExperimentConfig, window: Window) -> MeasurementSlice:
    """Find the part of `window` that counts, its tokens and its energy.

    Raises:
        ExperimentError: Nothing was produced in it, or it cannot be told apart.
    """
    energy = window.energy
    limits = slice_limits(config.measurement, window)
    if limits is None:
        methodology: Methodology = "steady_state" if config.warmup.enabled else "total"
        return MeasurementSlice(methodology, energy.start_s, energy.end_s, count_tokens(window.outputs), energy)
    start_s, end_s = limits
    tokens = count_tokens_between(window.outputs, start_s, end_s)
    return MeasurementSlice("windowed", start_s, end_s, tokens, energy_between(energy, start_s, end_s))


def slice_limits(config: MeasurementConfig, window: Window) -> Span | None:
    """Start and end of the part of `window` that counts, on the measurement clock in seconds; `None`: all of it.

    Raises:
        ExperimentError: Nothing is left of it, or it cannot be told apart.
    """
    if not (config.skip_first_seconds or config.skip_last_seconds or config.full_batch_only):
        return None
    start_s = window.energy.start_s + (config.skip_first_seconds or 0.0)
    end_s = window.energy.end_s - (config.skip_last_seconds or 0.0)
    if config.full_batch_only:
        full_s, drained_s = full_batch_interval(window.outputs)
        start_s, end_s = max(start_s, full_s), min(end_s, drained_s)
    if end_s <= start_s:
        raise ExperimentError(
            f"nothing is left of the window of {duration(window.energy.duration_sec)} after measurement.skip_first_"
            f"seconds = {config.skip_first_seconds or 0:g}, skip_last_seconds = {config.skip_last_seconds or 0:g} and "
            f"full_batch_only = {str(config.full_batch_only).lower()}; measure for longer or skip less."
        )
    return start_s, end_s
