"""Whether anything is compiled or recorded inside the window where `torch.compile` is asked for: it takes minutes."""

from __future__ import annotations

from typing import Any

from gpu_check_parts.compiling import EXPECTED, judge_setting
from gpu_check_parts.lines import Book, Line

LINES = (
    Line("graphs.reduce-overhead", f"reduce-overhead with a static cache, 20 prompts: {EXPECTED}", 1),
    Line(
        "graphs.memory", "with graphs, PyTorch's peak memory is what the board's used memory grew by, within 10 %", 11
    ),
    Line("graphs.torch_compile", f"torch_compile, 20 prompts: {EXPECTED}", 1),
    Line("graphs.even", f"torch_compile, 16 prompts, no ragged batch: {EXPECTED}", 1),
)

EVEN_PROMPTS = 16


def recorded(rig: Any, book: Book) -> None:
    """CUDA graphs, and the memory that they keep."""
    before_mb = rig.gpu.driver.memory_used_mb(rig.gpu.handle)
    section = {"torch_compile": True, "torch_compile_mode": "reduce-overhead", "cache_implementation": "static"}
    during_mb = judge_setting(rig, book, "graphs.reduce-overhead", section)
    _, peak_mb = rig.torch_memory_mb()
    grew_mb = max(during_mb, default=before_mb) - before_mb
    holds = None if not peak_mb else abs(grew_mb - peak_mb) <= 0.1 * peak_mb
    measured = f"PyTorch's peak {peak_mb:.0f} MB, the board's used memory grew by {grew_mb:.0f} MB"
    book.judge("graphs.memory", holds, measured, peak_mb=peak_mb, grew_mb=grew_mb)


def compiled(rig: Any, book: Book) -> None:
    """The default mode, with and without a ragged batch."""
    judge_setting(rig, book, "graphs.torch_compile", {"torch_compile": True})
    judge_setting(rig, book, "graphs.even", {"torch_compile": True}, EVEN_PROMPTS)


STEPS = (compiled, recorded)
