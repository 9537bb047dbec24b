"""`llem run --dry-run` on a study: its grid, what is skipped and why, the order, and how long it takes at the least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llenergymeasure.cli.devices import gpu_count
from llenergymeasure.cli.dry_run import gigabytes, gpus_here, known_waits, memory_verdict
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.naming import study_titles
from llenergymeasure.core.gpu.driver import Gpu
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.model.memory import estimate_vram
from llenergymeasure.results.summary import duration
from llenergymeasure.study.gaps import gaps_of
from llenergymeasure.study.sequence import PlannedRun, plan_runs

if TYPE_CHECKING:
    from llenergymeasure.config.user_config import UserConfig

MAX_LISTED: Final = 50
"""Configurations, skipped points and runs that are listed unless all are asked for."""


def render_study_preview(
    study: StudyConfig, machine: UserConfig, *, list_all: bool = False, host: Host | None = None
) -> str:
    """What a study would do. Loads nothing and runs nothing.

    Args:
        study: The study.
        machine: The user's settings.
        list_all: List every configuration, also of a large study.
        probes: How to look at the machine.
    """
    host = host or Host()
    most = len(study.experiments) + len(study.skipped_configs) if list_all else MAX_LISTED
    runs = plan_runs(study)
    execution = study.execution
    lines = [
        f"Dry run: study {study.name or '(no name)'}, design {study.study_design_hash}",
        f"  {len(study.experiments)} configurations × {execution.n_cycles} cycles, {execution.cycle_order}: "
        f"{len(runs)} runs",
        "",
        "Configurations",
        *_limited(_configurations(study.experiments, machine, most, host), len(study.experiments), most),
    ]
    if study.skipped_configs:
        lines += ["", f"Skipped points of the grid, because not valid: {len(study.skipped_configs)}"]
        reasons = (f"  ✗ {point.get('reason', 'not valid')}" for point in study.skipped_configs[:most])
        lines += _limited(reasons, len(study.skipped_configs), most)
    lines += ["", f"Order          {_order(study, runs)}", *_time(study, runs, machine), "Nothing was run."]
    return "\n".join(lines)


def _configurations(
    experiments: Sequence[ExperimentConfig], machine: UserConfig, most: int, host: Host
) -> Iterator[str]:
    gpus = gpus_here(host)
    for number, (config, title) in enumerate(zip(experiments[:most], study_titles(experiments), strict=False), 1):
        yield f"  {number:>4}  {title}{_memory(config, machine, gpus, host)}"


def _memory(config: ExperimentConfig, machine: UserConfig, gpus: Sequence[Gpu], host: Host) -> str:
    """The GPU memory that `config` needs; nothing on the CPU, and where it is not known."""
    if config.pytorch is not None and config.pytorch.device == "cpu":
        return ""
    vram = estimate_vram(config, environ=host.environ, cache_home=Path(machine.output.model_cache_dir))
    if vram.total_mb is None:
        return ""
    used = gpus[: gpu_count(config, len(gpus))] if gpus else ()
    return f"  (GPU memory ≈ {gigabytes(vram.total_mb)}{memory_verdict(vram.total_mb, config, used)})"


def _limited(lines: Iterator[str], total: int, most: int) -> Iterator[str]:
    yield from lines
    if total > most:
        yield f"        … and {total - most} more (--verbose lists all)"


def _order(study: StudyConfig, runs: Sequence[PlannedRun]) -> str:
    """The first runs by the numbers of their configurations."""
    numbers = {id(config): number for number, config in enumerate(study.experiments, start=1)}
    shown = [str(numbers.get(id(run.config), "?")) for run in runs[:20]]
    return " ".join(shown) + (" …" if len(runs) > len(shown) else "")


def _time(study: StudyConfig, runs: Sequence[PlannedRun], machine: UserConfig) -> Iterator[str]:
    gaps = gaps_of(study.execution, machine)
    gap_s = sum(gaps.between(before, after)[1] for before, after in pairwise(runs))
    waits = [dict(known_waits(run.config)) for run in runs]
    baseline_s = max((wait.pop("baseline", 0.0) for wait in waits), default=0.0)  # measured once, then shared
    wait_s = baseline_s + sum(seconds for wait in waits for seconds in wait.values())
    yield f"Time           at least {duration(gap_s + wait_s)}: {duration(gap_s)} of gaps, {duration(wait_s)} of waits"
    yield "               loading and generating come on top; how long they take is not known before a first run"
