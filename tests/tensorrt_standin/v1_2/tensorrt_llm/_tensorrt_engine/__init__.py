"""`tensorrt_llm._tensorrt_engine` of 1.2.1: builds an engine when it gets a checkpoint, and runs what was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trtllm_standin import build

from tensorrt_llm import LLM as PyTorchLLM
from tensorrt_llm import llmapi


class LLM(PyTorchLLM):
    arguments_class = llmapi.TrtLlmArgs

    def _checkpoint(self) -> str:
        """That of which the engine was built: the stand-in keeps its place."""
        config = json.loads((Path(self.args.model) / "config.json").read_text())
        return str(config["build_config"]["checkpoint"]) if "build_config" in config else str(self.args.model)

    def save(self, engine_dir: str) -> None:
        limits: dict[str, Any] = (self.args.build_config or llmapi.BuildConfig()).model_dump()
        build(self, Path(engine_dir), {**limits, "checkpoint": str(self.args.model)})
