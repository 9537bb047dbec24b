"""The roles that parts of llenergymeasure play for each other, as structural types.

Whoever needs one of these takes it as a parameter; tests pass their own. All are runtime-checkable.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from llenergymeasure.core.energy.types import EnergyBackend as EnergyBackend

if TYPE_CHECKING:
    from llenergymeasure.config.models import ExperimentConfig
    from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest
    from llenergymeasure.core.observations import Observations
    from llenergymeasure.domain.experiment import ExperimentResult, RawProcessResult


@runtime_checkable
class ModelLoader(Protocol):
    """Brings a model into memory, ready to generate."""

    def load(self, config: ExperimentConfig) -> None:
        """Load the model that `config` names.

        Raises:
            BackendError: The model cannot be loaded as asked.
        """


@runtime_checkable
class InferenceEngine(Protocol):
    """Turns prompts into tokens."""

    def run(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for `requests` and return when the last token is there."""


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


@runtime_checkable
class ResultsRepository(Protocol):
    """Keeps results."""

    def save(self, result: ExperimentResult, timeseries: Path | None = None, extra_files: Sequence[Path] = ()) -> Path:
        """Store a result with the files that belong beside it, and say where.

        Raises:
            PersistenceError: It could not be stored where it should be.
        """

    def load(self, path: Path) -> ExperimentResult:
        """Read a stored result back."""
