"""The roles that parts of llenergymeasure play for each other, as structural types; each is declared beside its data.

Whoever needs one of these takes it as a parameter; tests pass their own. All are runtime-checkable.
"""

from llenergymeasure.core.assemble import MetricsCollector
from llenergymeasure.core.backends.protocol import InferenceEngine, ModelLoader
from llenergymeasure.core.energy.types import EnergyBackend
from llenergymeasure.results.persistence import ResultsRepository

__all__ = ["EnergyBackend", "InferenceEngine", "MetricsCollector", "ModelLoader", "ResultsRepository"]
