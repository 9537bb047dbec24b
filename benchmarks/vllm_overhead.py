"""What measuring costs vLLM: its own `LLM.generate` against the harness on the same prompts, in turn.

Both are asked of one engine, so that neither has the better place on the machine. For the bare call its statistics are
switched off, as `LLM` has them by default, and ids are not turned into text. Beside the ratio is a control, the bare
call twice: a machine whose control is off by a per cent cannot tell a ratio of 0.99 from 1.

The engine core runs in this process, or in its own as everywhere in vLLM:

    python -m benchmarks.vllm_overhead [--quick]
    VLLM_ENABLE_V1_MULTIPROCESSING=1 python -m benchmarks.vllm_overhead [--quick]
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from benchmarks.report import Figure, main
from vllm import LLM, SamplingParams
from vllm.v1.engine.core import EngineCore

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.backends.vllm import liveness
from llenergymeasure.core.backends.vllm.backend import VLLMBackend
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.progress import ignore_events
from llenergymeasure.core.window import measure_window
from llenergymeasure.datasets.loader import load_prompts

PROCESS_VARIABLE = "VLLM_ENABLE_V1_MULTIPROCESSING"
PLAIN_CORE = liveness.run_core
AT_ONCE = 32
SECTION = {"max_num_seqs": AT_ONCE, "max_model_len": 512, "enforce_eager": True, "enable_prefix_caching": False}
PROMPTS = 64
OUTPUT_TOKENS = 64


def measure(quick: bool) -> list[Figure]:
    os.environ.setdefault(PROCESS_VARIABLE, "0")
    liveness.run_core = run_core
    clock = SystemClock()
    config = ExperimentConfig.model_validate(
        {
            "model": "builtin/tiny-llama",
            "backend": "vllm",
            "dataset": {"synthetic": {"n": PROMPTS, "input_len": 64, "output_len": OUTPUT_TOKENS}},
            "decoder": {"preset": "deterministic", "min_new_tokens": OUTPUT_TOKENS},
            "vllm": SECTION,
            "passthrough_kwargs": {"dtype": "float32"},
        }
    )
    engine = VLLMBackend(clock)
    prompts = load_prompts(config, engine.tokenizer(config)).prompts
    requests = [GenerationRequest(p.index, p.token_ids, OUTPUT_TOKENS, OUTPUT_TOKENS) for p in prompts]
    asked = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts]
    forced = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, min_tokens=OUTPUT_TOKENS, detokenize=False)
    engine.load(config)
    try:

        def bare() -> float:
            switch_statistics(engine.llm, on=False)
            start = time.perf_counter()
            engine.llm.generate(asked, forced, use_tqdm=False)
            return time.perf_counter() - start

        def harness() -> float:
            switch_statistics(engine.llm, on=True)
            return measure_window(engine, requests, NoEnergyBackend(clock), clock, ignore_events).energy.duration_sec

        for _ in range(3):
            bare(), harness()  # warm
        return ratios(bare, harness, rounds=2 if quick else 40)
    finally:
        engine.unload()


def switch_statistics(llm: LLM, *, on: bool) -> None:
    """The engine core's statistics: off by default in vLLM, on where tokens are timed."""
    client: Any = llm.llm_engine.engine_core
    if os.environ[PROCESS_VARIABLE] == "0":
        _switch(client.engine_core, on)
    else:
        client.call_utility(_switch.__name__, on)


def _switch(core: Any, on: bool) -> None:
    core.log_stats = core.scheduler.log_stats = on
    core.vllm_config.observability_config.enable_logging_iteration_details = on


def run_core(*args: Any, **kwargs: Any) -> None:
    """The process of a core that can be asked to switch its statistics."""
    setattr(EngineCore, _switch.__name__, _switch)
    PLAIN_CORE(*args, **kwargs)


def ratios(bare: Callable[[], float], harness: Callable[[], float], rounds: int) -> list[Figure]:
    """Both ratios of neighbours in time; who goes first changes from round to round."""
    harness_ratios, control_ratios, bare_s = [], [], []
    for _, reverse in zip(range(rounds), (bool(i % 2) for i in count()), strict=False):
        order = [bare, harness, bare]
        first, middle, last = (run() for run in (reversed(order) if reverse else order))
        harness_ratios.append((first + last) / 2 / middle)
        control_ratios.append(first / last if reverse else last / first)
        bare_s += [first, last]
    where = "this" if os.environ[PROCESS_VARIABLE] == "0" else "its own"
    rate = PROMPTS * OUTPUT_TOKENS / statistics.median(bare_s)
    return [
        Figure("throughput of bare LLM.generate", rate, "tok/s", None, f"{AT_ONCE} at once, core in {where} process"),
        _ratio("throughput, harness : bare", harness_ratios),
        _ratio("throughput, bare : bare (control)", control_ratios),
    ]


def _ratio(name: str, found: Sequence[float]) -> Figure:
    quarter = len(found) // 4
    low, high = sorted(found)[quarter], sorted(found)[-quarter - 1]
    note = f"middle half {low:.3f} to {high:.3f} of {len(found)} rounds"
    return Figure(name, statistics.median(found), "x", None, note)


if __name__ == "__main__":
    sys.exit(main("What measuring costs vLLM", measure))
