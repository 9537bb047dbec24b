"""Which parts there are, in what order, and how long each may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_check_parts.lines import Line

TOTAL_S = 478.0
"""The whole check ends before this, in seconds, whatever happens: a board is lent for ten minutes."""

REPORT_S = 10.0
"""Of it, kept for writing the report."""

REHEARSAL_FACTOR = 4.0
"""A rehearsal may take so many times as long: its durations are short, and its machine is small and shared."""


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Args:
        limit_s: Seconds after which it is killed; what it found until then counts.
        takes_rest: Whether it may use what the parts before it have left.
    """

    name: str
    limit_s: float
    asks: str
    takes_rest: bool = False

    @property
    def module(self) -> Any:
        """Its module."""
        return importlib.import_module(f"gpu_check_parts.{self.name}")

    @property
    def lines(self) -> Sequence[Line]:
        """Its expectations."""
        return self.module.LINES

    @property
    def steps(self) -> Sequence[Callable[[Any, Any], None]]:
        """What finds out."""
        return self.module.STEPS


PARTS = (
    Part("sensor", 72, "fields, time stamps, update periods, calibration"),
    Part("counter", 76, "counter against integral on known loads; does the counter see all the time?"),
    Part("idle", 42, "idle power: bare, with a CUDA context, with a model; the baseline of a second run"),
    Part("harness", 64, "throughput, step times, hooks, sampler, reseeding, first pass against second"),
    Part("compiling", 60, "a static cache, which the library compiles for: nothing of it inside the window"),
    Part("devices", 52, "visible devices, memory, out of memory, a study killed in the middle"),
    Part("phases", 46, "prefill and decode joules against separate runs"),
    Part("floor", 44, "the thermal floor, resident idle power, drift after it"),
    Part("clocks", 12, "power limit, clocks and throttle reasons"),
)
"""In the order in which they run."""

ON_REQUEST = (
    Part("board_tests", 110, "the project's own tests that need a GPU"),
    Part("study", 320, "a small study: spread over cycles against the stated intervals", takes_rest=True),
    Part("long_windows", 170, "windows of 30 s on known loads; decoding at batch 1, 8, 64"),
    Part("graphs", 200, "torch.compile and CUDA graphs: nothing of them inside the window"),
    Part("repeats", 40, "greedy texts that differ between two calls: is it our loop, the library, or single passes?"),
)
"""Run with `--only` alone: the others leave no time for them."""


def part_named(name: str) -> Part:
    """The part of this name.

    Raises:
        KeyError: There is none.
    """
    found = {part.name: part for part in (*PARTS, *ON_REQUEST)}
    if name not in found:
        raise KeyError(f"no part is called {name!r}; there are {', '.join(found)}")
    return found[name]


def stretch(parts: Sequence[Part], total_s: float) -> float:
    """By what factor their limits grow so that a few parts use all the time there is; never below 1."""
    return max(1.0, (total_s - REPORT_S) / sum(part.limit_s for part in parts))


def budget_table(parts: Sequence[Part], total_s: float = TOTAL_S, factor: float = 1.0) -> str:
    """What each part may take, for people."""
    rows = [f"  {part.name:<12}{factor * part.limit_s:>5.0f} s   {part.asks}" for part in parts]
    limits_s = factor * sum(part.limit_s for part in parts)
    return "\n".join(
        [
            *rows,
            f"  {'report':<12}{REPORT_S:>5.0f} s",
            f"  {'in all':<12}{limits_s + REPORT_S:>5.0f} s of {total_s:.0f} s",
        ]
    )
