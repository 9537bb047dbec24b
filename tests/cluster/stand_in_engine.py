"""An engine for nodes of a cluster: it leaves a mark when it generates, and waits while a file says so.

`passthrough_kwargs`: `marks`, a directory for its marks; `hold`, a file that it waits for to be gone.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest
from llenergymeasure.core.backends.registry import register
from scripted_experiments import BoardEngine

NODE_VARIABLE = "TEST_CLUSTER_NODE"


class MarkingEngine(BoardEngine):
    def load(self, config: ExperimentConfig) -> None:
        super().load(config)
        self.told: dict[str, Any] = config.passthrough_kwargs or {}
        self.seed = config.random_seed

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        if "marks" in self.told:
            node = os.environ.get(NODE_VARIABLE, "here")
            name = f"{node} {self.seed} {os.getpid()} {uuid.uuid4().hex[:8]}"
            print(f"generating on {node}", file=sys.stderr)
            Path(self.told["marks"], name).write_text(os.environ.get("OMP_NUM_THREADS", "unset"))
        while "hold" in self.told and Path(self.told["hold"]).exists():
            time.sleep(0.05)
        return super().generate(requests)


@register("stand_in", needs="pydantic>=2 packaging", preload="json")
def provider():
    return lambda clock, cache: MarkingEngine(
        used_devices=("cpu",), clock=clock, name="stand_in", prefill_s=0.01, step_s=0.001
    )
