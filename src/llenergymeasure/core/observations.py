"""What is seen of one experiment, as the harness hands it to the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import LoadedModel, MemoryStats
from llenergymeasure.core.baseline import Baseline
from llenergymeasure.core.energy.types import DeviceId
from llenergymeasure.core.warmup import Warmup
from llenergymeasure.core.window import Window
from llenergymeasure.datasets.types import PromptSet, PromptTokenizer
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.warnings import MeasurementWarning


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
