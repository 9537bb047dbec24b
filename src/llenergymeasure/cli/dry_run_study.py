"""`llem run --dry-run` on a study: its grid, what is skipped and why, the order, and how long it takes at the least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.cli.dry_run import known_waits
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.naming import experiment_title
from llenergymeasure.core.host.vram import estimate_vram
from llenergymeasure.domain.summary import duration
from llenergymeasure.study.gaps import gaps_of
from llenergymeasure.study.sequence import PlannedRun, plan_runs

if TYPE_CHECKING:
    from llenergymeasure.config.user_config import UserConfig

MAX_LISTED: Final = 50
"""Configurations, skipped points and runs that are listed unless all are asked for."""

NAMED_IN_TITLE: Final = frozenset({"model", "backend", "precision", "pytorch.batch_size", "vllm.max_num_seqs"})
"""Fields that a configuration's title shows already."""


def render_study_preview(study: StudyConfig, machine: UserConfig, *, list_all: bool = False) -> str:
    """What a study would do. Loads nothing and runs nothing.

    Args:
        study: The study.
        machine: The user's settings.
        list_all: List every configuration, also of a large study.
    """
    most = len(study.experiments) + len(study.skipped_configs) if list_all else MAX_LISTED
    runs = plan_runs(study)
    execution = study.execution
    lines = [
        f"Dry run: study {study.name or '(no name)'}, design {study.study_design_hash}",
        f"  {len(study.experiments)} configurations × {execution.n_cycles} cycles, {execution.cycle_order}: "
        f"{len(runs)} runs",
        "",
        "Configurations",
        *_limited(_configurations(study.experiments, machine, most), len(study.experiments), most),
    ]
    if study.skipped_configs:
        lines += ["", f"Skipped: {len(study.skipped_configs)} points of the grid are not valid experiments"]
        reasons = (f"  ✗ {point.get('reason', 'not valid')}" for point in study.skipped_configs[:most])
        lines += _limited(reasons, len(study.skipped_configs), most)
    lines += ["", f"Order          {_order(study, runs)}", *_time(study, runs, machine), "Nothing was run."]
    return "\n".join(lines)


def varying_fields(experiments: Sequence[ExperimentConfig]) -> list[dict[str, Any]]:
    """Per experiment, the fields by which the experiments differ, by dotted path."""
    flat = [dict(_flat(config.model_dump(mode="json", exclude_none=True))) for config in experiments]
    first: dict[str, Any] = flat[0] if flat else {}
    varying = {key for fields in flat for key in {**first, **fields} if fields.get(key) != first.get(key)}
    return [{key: fields.get(key) for key in sorted(varying)} for fields in flat]


def _configurations(experiments: Sequence[ExperimentConfig], machine: UserConfig, most: int) -> Iterator[str]:
    for number, (config, fields) in enumerate(zip(experiments[:most], varying_fields(experiments), strict=False), 1):
        shown = ", ".join(f"{key}={value}" for key, value in fields.items() if key not in NAMED_IN_TITLE)
        vram = estimate_vram(config, cache_home=Path(machine.output.model_cache_dir))
        memory = "" if vram.total_mb is None else f"  (GPU memory ≈ {vram.total_mb / 1000:.1f} GB)"
        yield f"  {number:>4}  {experiment_title(config)}{'  ' + shown if shown else ''}{memory}"


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
    wait_s = sum(seconds for run in runs for _, seconds in known_waits(run.config))
    yield f"Time           at least {duration(gap_s + wait_s)}: {duration(gap_s)} of gaps, {duration(wait_s)} of waits"
    yield "               loading and generating come on top; how long they take is not known before a first run"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, value
