"""The stand-ins of TensorRT-LLM, one of each generation, in processes of their own with scripted boards as GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STANDINS = HERE / "tensorrt_standin"
WITH_BUILDER, WITHOUT_BUILDER = "v1_2", "v1_4"

PREAMBLE = """
import json, os, sys
from pathlib import Path
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.backends.registry import get_backend
from llenergymeasure.exceptions import BackendError

def experiment(**fields):
    settings = {"backend": "tensorrt", "model": sys.argv[1], "max_input_tokens": 64, "max_output_tokens": 16}
    return ExperimentConfig(**{**settings, "decoder": {"temperature": 0}, **fields})

def requests(*limits, least=None):
    pairs = [(limit, limit if least is None else least) for limit in limits]
    return [GenerationRequest(index, (0, 72, 101), *pair) for index, pair in enumerate(pairs)]

def refusal(call, *args):
    try:
        call(*args)
    except BackendError as error:
        return str(error)
    raise SystemExit("nothing was refused")

def tell(value):
    print("TOLD " + json.dumps(value))
"""


@dataclass(frozen=True)
class TensorRTBench:
    """Runs code that has `PREAMBLE`'s names, with one stand-in installed."""

    generation: str
    model: Path
    home: Path
    boards: int = 1
    environ: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        from tests.nvml.scripted import Counter, ScriptedGpu, scripted_env  # what documents settings has no such path
        from tests.nvml.waveform import constant

        gpus = [
            ScriptedGpu.of("hopper", name="H100", waveform=constant(300.0), counter=Counter(period_s=0.1))
            for _ in range(self.boards)
        ]
        paths = [STANDINS / "common", STANDINS / self.generation, HERE.parent / "src"]
        return {
            **os.environ,
            **(scripted_env(gpus, self.home) if gpus else {"CUDA_VISIBLE_DEVICES": ""}),
            "HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            **self.environ,
        }

    def start(self, code: str) -> subprocess.Popen[str]:
        """Start `code` and let it run."""
        command = [sys.executable, "-c", PREAMBLE + code, str(self.model)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment(), **pipes)

    def told(self, code: str) -> Any:
        """What `code` tells."""
        return answer_of(self.start(code))


def answer_of(process: subprocess.Popen[str]) -> Any:
    """What a started process tells in the end."""
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (line,) = (line for line in printed.splitlines() if line.startswith("TOLD "))
    return json.loads(line.removeprefix("TOLD "))
