"""What is seen of one experiment, as the harness hands it to the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

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
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import Methodology
from llenergymeasure.domain.warnings import MeasurementWarning
from llenergymeasure.exceptions import ExperimentError


@dataclass(frozen=True, slots=True)
class Observations:
    """Everything that was seen of one experiment on one process, before any arithmetic.

    Args:
        config: The experiment.
        engine: Name and version of the inference engine.
        began_s: Start of the experiment on the measurement clock, in seconds.
        began_at: The same moment for people (UTC).
        environment: The machine and its software.
        prompts: What was generated from.
        baseline: Idle power.
        warmup: What warm-up did.
        window: What happened in the measurement window.
        model: What was loaded, read back from the engine.
        memory: Device memory of the window.
        devices: The devices the engine really used.
        tokenizer: The model's tokenizer, to turn ids into text where that was asked for.
        preflight_warnings: Doubts found before anything ran.
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


@dataclass(frozen=True, slots=True)
class CountedPart:
    """The part of a window that goes into the headline figures.

    Args:
        methodology: `total`, `steady_state` or `windowed`.
        start_s: Its start on the measurement clock, in seconds.
        end_s: Its end, likewise.
        tokens: What was produced in it.
        energy: What was spent in it.
    """

    methodology: Methodology
    start_s: float
    end_s: float
    tokens: TokenCounts
    energy: EnergyMeasurement

    def whole_requests(self, outputs: Sequence[RequestOutput]) -> Sequence[RequestOutput]:
        """Those of `outputs` whose latencies belong to this part: all, or those begun and ended within it."""
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


def counted_part(config: ExperimentConfig, window: Window) -> CountedPart:
    """Find the part of `window` that counts, its tokens and its energy.

    Raises:
        ExperimentError: Nothing was produced in it, or it cannot be told apart.
    """
    energy = window.energy
    limits = counted_limits(config.measurement, window)
    if limits is None:
        methodology: Methodology = "steady_state" if config.warmup.enabled else "total"
        return CountedPart(methodology, energy.start_s, energy.end_s, count_tokens(window.outputs), energy)
    start_s, end_s = limits
    tokens = count_tokens_between(window.outputs, start_s, end_s)
    return CountedPart("windowed", start_s, end_s, tokens, energy_between(energy, start_s, end_s))


def counted_limits(config: MeasurementConfig, window: Window) -> Span | None:
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
            f"nothing is left of the {window.energy.duration_sec:.2f} s window after measurement.skip_first_seconds "
            f"= {config.skip_first_seconds or 0:g}, skip_last_seconds = {config.skip_last_seconds or 0:g} and "
            f"full_batch_only = {str(config.full_batch_only).lower()}; measure for longer or skip less."
        )
    return start_s, end_s
