"""Idle power: of the bare board, with a CUDA context, with a model in memory; and what a run takes for idle."""

from __future__ import annotations

import math
from typing import Any

from gpu_check_parts.lines import Book, Line, percent
from gpu_check_parts.windows import figures_of, watts

LINES = (
    Line("idle.context", "a CUDA context alone costs tens of watts (published for an H100: 72 to 122 W)"),
    Line("idle.weights", "weights in memory cost less than 0.02 W per GB beside the context"),
    Line("idle.second-run", "a run in a process that has a CUDA context already finds bare idle power, within 5 W", 7),
    Line("idle.cached", "the run after it takes the idle power over from it instead of measuring it again", 7),
    Line("idle.above", "energy above idle of decoding at batch 1 holds less than 5 % that is the context's own power"),
)

SETTLING_S = 0.8
WINDOW_S = 2.5

RESOLVED_W = 1.0
"""Less than this between two idle windows may be temperature."""

_seen_w: dict[str, float] = {}
"""Mean power by state, for the steps that follow."""


def bare_and_context(rig: Any, book: Book) -> None:
    """Before anything has started CUDA in this process, and right after."""
    _watch(rig, "bare")
    rig.start_cuda()
    _watch(rig, "with a context")
    more_w = _seen_w["with a context"] - _seen_w["bare"]
    measured = f"{_seen_w['bare']:.1f} W bare, {_seen_w['with a context']:.1f} W with a context: {more_w:+.1f} W"
    book.judge(
        "idle.context", 10.0 <= more_w <= 90.0, measured, **{name.replace(" ", "_"): w for name, w in _seen_w.items()}
    )


def resident_weights(rig: Any, book: Book) -> None:
    """With the large model loaded and nothing asked of it."""
    told = []
    for name in (rig.models.large,):
        config = rig.config(name, n=2, batch=1, input_len=32, output_len=8)
        with rig.session(config) as session:
            session.engine.generate(session.requests)
            _watch(rig, name)
            weights_gb = (session.engine.memory().model_mb or math.nan) / 1000.0
        more_w = _seen_w[name] - _seen_w["with a context"]
        told.append(
            f"{name} ({weights_gb:.2f} GB): {_seen_w[name]:.1f} W, {more_w:+.1f} W, {more_w / weights_gb:+.3f} W/GB"
        )
        too_much = more_w >= 0.02 * weights_gb
        holds = None if too_much and abs(more_w) < RESOLVED_W else not too_much
        book.judge("idle.weights", holds, "; ".join(told), watts=dict(_seen_w))


def second_run(rig: Any, book: Book) -> None:
    """Runs of the harness in this process, whose context stays."""
    baseline = {"enabled": True, "duration_seconds": 5.0}
    config = rig.config(rig.models.small, n=2, batch=1, input_len=32, output_len=64)
    config = type(config).model_validate({**config.model_dump(exclude_unset=True), "baseline": baseline})
    seen = []
    for _ in range(2):
        found = rig.observe(config)
        seen.append((found.baseline, figures_of(found.window.energy)))
        found.window.energy.close()
    (first, window), (second, _) = seen
    if first.power_w is None:
        book.judge("idle.second-run", None, "; ".join(str(warning) for warning in first.warnings) or "no baseline")
        return
    off_w = first.power_w - _seen_w["bare"]
    measured = f"{first.power_w:.1f} W ({first.method}), bare {_seen_w['bare']:.1f} W: {off_w:+.1f} W"
    book.judge("idle.second-run", abs(off_w) <= 5.0, measured, baseline_w=first.power_w)
    book.judge("idle.cached", second.method == "cached", f"the second run's baseline is {second.method}")
    above_w = watts(window) - _seen_w["bare"]
    share = percent(_seen_w["with a context"] - _seen_w["bare"], above_w)
    measured = (
        f"decoding draws {watts(window):.1f} W, {above_w:.1f} W above bare idle; {share:.0f} % of it is the context"
    )
    book.judge("idle.above", share < 5.0 if math.isfinite(share) else None, measured, window=window, share_pct=share)


STEPS = (bare_and_context, resident_weights, second_run)


def _watch(rig: Any, state: str) -> None:
    rig.clock.sleep(rig.seconds(SETTLING_S))
    energy = rig.metered(rig.meter(), WINDOW_S, 0.5)
    _seen_w[state] = watts(figures_of(energy))
    energy.close()
