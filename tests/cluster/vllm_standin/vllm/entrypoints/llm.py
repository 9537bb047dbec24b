"""Takes the place of this package's vLLM backend: an engine that uses the scripted boards of all nodes of its cluster.

`passthrough_kwargs`: `boards`, the UUIDs that it says it uses; `marks` and `hold` as in `stand_in_engine.py`.
"""

from __future__ import annotations

import sys
from types import ModuleType

from stand_in_engine import MarkingEngine

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.host.host import Host


class SpreadEngine(MarkingEngine):
    """Uses boards here when it is asked before loading, and all that it was told of afterwards."""

    def plan_devices(self, config: ExperimentConfig) -> tuple[DeviceId, ...]:
        return tuple(gpu.uuid for gpu in Host().visible_gpus())

    def load(self, config: ExperimentConfig) -> None:
        super().load(config)
        self.used_devices = tuple(self.told["boards"])


def backend(clock: Clock, cache: object) -> SpreadEngine:
    return SpreadEngine(used_devices=(), clock=clock, name="vllm", prefill_s=0.3, step_s=0.2)


module = ModuleType("llenergymeasure.core.backends.vllm.backend")
module.VLLMBackend = backend  # type: ignore[attr-defined]
sys.modules[module.__name__] = module
