"""Whether anything is compiled inside the window with a static cache, for which transformers compiles by itself."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from gpu_check_parts.lines import Book, Line

EXPECTED = "no graph is made in the window, and its longest token gap is below 20 times the median"

LINES = (Line("compiling.static", f"static cache, batch 8, 20 prompts (a ragged last batch): {EXPECTED}", 1),)

PROMPTS, BATCH = 20, 8
LONG_GAP = 20.0


def static(rig: Any, book: Book) -> None:
    """transformers compiles by itself with a static cache on CUDA."""
    judge_setting(rig, book, "compiling.static", {"cache_implementation": "static"})


STEPS = (static,)


def judge_setting(rig: Any, book: Book, key: str, section: dict[str, Any], prompts: int = PROMPTS) -> list[float]:
    """Run with these fields of the pytorch section; the board's used memory after every batch of the window, in MB."""
    if rig.rehearsal and "torch_compile" in section:  # the same graphs are counted, and nothing is compiled for minutes
        section = {"torch_compile": True, "torch_compile_backend": "eager"}
    config = rig.config(rig.models.tiny, n=prompts, batch=BATCH, input_len=32, output_len=64, **section)
    counted: dict[str, int] = {}
    used_mb: list[float] = []

    def watch(event: Any) -> None:
        kind = type(event).__name__
        if kind == "PromptsDone":
            used_mb.append(rig.gpu.driver.memory_used_mb(rig.gpu.handle))
        elif event.step == "measure":
            counted[kind] = _graphs_made()

    seen = rig.observe(config, watch)
    seen.window.energy.close()
    made = counted["StepFinished"] - counted["StepStarted"]
    longest, median_ms, told = _gaps(seen.window.outputs)
    measured = f"{made} graphs made in the window ({counted['StepStarted']} before it); {told}"
    holds = made == 0 and longest < LONG_GAP * median_ms
    book.judge(key, holds, measured, made=made, longest_ms=longest, median_ms=median_ms, used_mb=used_mb)
    return used_mb


def _graphs_made() -> int:
    """Graphs that the compiler has made in this process so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"].get("unique_graphs", 0))


def _gaps(outputs: Any) -> tuple[float, float, str]:
    """Longest gap between two tokens and the median in ms, and where the longest one was."""
    worst: tuple[float, int, int] = (0.0, 0, 0)
    every: list[float] = []
    for place in range(0, len(outputs), BATCH):
        times_s = [outputs[place].started_s, *(outputs[place].token_times_s or ())]
        gaps_ms = [1000 * (late - early) for early, late in itertools.pairwise(times_s)]
        every += gaps_ms
        worst = max(worst, *((gap_ms, place // BATCH + 1, step + 1) for step, gap_ms in enumerate(gaps_ms)))
    median_ms = statistics.median(every)
    told = f"longest gap {worst[0]:.1f} ms in batch {worst[1]}, step {worst[2]}; median {median_ms:.2f} ms"
    return worst[0], median_ms, told
