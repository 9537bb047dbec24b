"""Stands in for an engine that cannot be had, so that pre-flight can tell of it together with everything else."""

from __future__ import annotations

from collections.abc import Sequence

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    LoadedModel,
    MemoryStats,
)
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.datasets.types import PromptTokenizer
from llenergymeasure.exceptions import BackendError


class MissingBackend:
    """An engine that is not installed, or not in a version that works: its pre-flight says so, all else raises.

    Args:
        name: The name a config uses.
        reason: What is missing, and how to install it.
    """

    batch_size = None

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def preflight(self, config: ExperimentConfig) -> Sequence[str]:
        """The reason, which is what this class is for."""
        return (self._reason,)

    def version(self) -> str:
        """Raises: there is no version."""
        raise self._error()

    def plan_devices(self, config: ExperimentConfig) -> tuple[DeviceId, ...]:
        """Raises: devices are the engine's to choose."""
        raise self._error()

    def tokenizer(self, config: ExperimentConfig) -> PromptTokenizer:
        """Raises: there is no engine."""
        raise self._error()

    def load(self, config: ExperimentConfig) -> None:
        """Raises: there is no engine."""
        raise self._error()

    def devices(self) -> tuple[DeviceId, ...]:
        """Raises: nothing is loaded."""
        raise self._error()

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Raises: nothing is loaded."""
        raise self._error()

    def synchronize(self) -> None:
        """Raises: nothing is loaded."""
        raise self._error()

    def reset_peak_memory(self) -> None:
        """Raises: nothing is loaded."""
        raise self._error()

    def memory(self) -> MemoryStats:
        """Raises: nothing is loaded."""
        raise self._error()

    def describe(self) -> LoadedModel:
        """Raises: nothing is loaded."""
        raise self._error()

    def unload(self) -> None:
        """Nothing to do."""

    def _error(self) -> BackendError:
        return BackendError(self._reason)
