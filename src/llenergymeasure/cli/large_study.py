"""The dry run of a study that spans more points than can be held: each is looked at as it passes, and none is kept."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Final

from llenergymeasure.cli.dry_run import MAX_LISTED
from llenergymeasure.cli.terminal import print_result
from llenergymeasure.config.grid import Point, SkippedConfig, SkippedReasons, validated_points
from llenergymeasure.config.models import ExperimentConfig, experiment_title
from llenergymeasure.config.ssot import BATCH_SIZE_FIELD
from llenergymeasure.config.study_plan import StudyPlan

SHORT_WAIT_S: Final = 1.0
"""No bar is drawn before, in seconds."""

_IN_TITLE: Final = frozenset({"model", "backend", "precision", *BATCH_SIZE_FIELD.values()})


def print_preview(plan: StudyPlan, *, list_all: bool) -> None:
    """Print what a study spans, line by line as it is found out; a terminal is shown how far it is."""
    from tqdm import tqdm

    points = tqdm(
        validated_points(plan),
        total=plan.n_points,
        unit=" points",
        leave=False,
        delay=SHORT_WAIT_S,
        disable=list_all or not sys.stderr.isatty(),
    )
    for line in preview_lines(plan, points, list_all=list_all):
        print_result(line)


def preview_lines(
    plan: StudyPlan, points: Iterable[tuple[Point, ExperimentConfig | SkippedConfig]], *, list_all: bool
) -> Iterator[str]:
    """What a study spans, each line as soon as it is known.

    Args:
        points: Those of `plan`, see `validated_points`.
        list_all: Whether to list every configuration, and not the first ones alone.
    """
    yield f"Dry run: study {plan.study_fields.get('name') or '(no name)'}, {plan.n_points:,} points"
    yield ""
    yield "Configurations, equal ones more than once"
    valid = 0
    reasons = SkippedReasons(MAX_LISTED)
    for point, config in points:
        if isinstance(config, SkippedConfig):
            reasons.add(asdict(config))
            continue
        valid += 1
        if list_all or valid <= MAX_LISTED:
            yield f"  {valid:>7}  {_title(point, config)}"
    if not list_all and valid > MAX_LISTED:
        yield f"           … and {valid - MAX_LISTED:,} more (--verbose lists all)"
    if reasons.count:
        yield ""
        yield f"Skipped points of the grid, because not valid: {reasons.count:,}"
        yield from (f"  ✗ {line}" for line in reasons.lines())
    yield ""
    yield "Nothing was run."


def _title(point: Point, config: ExperimentConfig) -> str:
    """The experiment in a few words, and the swept fields that these leave out."""
    swept = [f"{path}={value}" for path, value in point.shown.items() if path not in _IN_TITLE]
    return " / ".join([experiment_title(config), *swept])
