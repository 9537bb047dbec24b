"""A dry run of a study that is too large to be held goes through it without keeping any of it."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from llenergymeasure.cli.dry_run import MAX_LISTED
from llenergymeasure.cli.large_study import preview_lines
from llenergymeasure.config.grid import MAX_POINTS, StudyTooLargeError, expand_grid, validated_points
from llenergymeasure.config.study_plan import StudyPlan, plan_study
from memory import peak_bytes

SMALL, LARGE = 100, 1_000
MOST_BYTES_PER_POINT = 100
"""Room for what waits for the garbage collector; a configuration takes several thousand."""

HEATS = [0.1, 0.2, 0.3, 0.4, 5.0]  # the last is too hot


def plan_of(points: int, **fields: Any) -> StudyPlan:
    sweep = {"random_seed": list(range(points // len(HEATS))), "decoder.temperature": HEATS}
    return plan_study({"model": "org/m", "sweep": sweep, **fields}, None, {})


def preview(plan: StudyPlan, *, list_all: bool = False) -> Iterator[str]:
    return preview_lines(plan, validated_points(plan), list_all=list_all)


def test_a_study_that_is_too_large_is_refused_before_any_point_is_looked_at_and_can_still_be_gone_through() -> None:
    side = math.isqrt(MAX_POINTS) + 1
    sweep = {"random_seed": list(range(side)), "n": list(range(1, side + 1))}
    with pytest.raises(StudyTooLargeError, match=r"spans 100,489 points; 100,000 is the most") as caught:
        expand_grid({"model": "m", "sweep": sweep})
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.plan, str(again)) == (caught.value.plan, str(caught.value))
    assert next(validated_points(again.plan))[0].shown == {"random_seed": 0, "n": 1}


def test_it_tells_the_first_configurations_how_many_there_are_and_why_points_are_skipped() -> None:
    lines = list(preview(plan_of(100, name="huge")))
    assert lines[:4] == [
        "Dry run: study huge, 100 points",
        "",
        "Configurations, equal ones more than once",
        "        1  m / pytorch / bf16 / random_seed=0 / decoder.temperature=0.1",
    ]
    assert lines[3 + MAX_LISTED :] == [
        f"           … and {80 - MAX_LISTED} more (--verbose lists all)",
        "",
        "Skipped points of the grid, because not valid: 20",
        "  ✗ decoder.temperature=5.0 (20 points): decoder.temperature: must be at most 2, got 5.0",
        "",
        "Nothing was run.",
    ]


def test_it_lists_all_where_that_is_asked_for() -> None:
    assert sum("random_seed=" in line for line in preview(plan_of(100), list_all=True)) == 80


def test_a_line_comes_as_soon_as_it_is_known() -> None:
    looked_at = []
    plan = plan_of(100)
    points = (looked_at.append(point) or (point, config) for point, config in validated_points(plan))
    lines = preview_lines(plan, points, list_all=True)
    assert [next(lines) for _ in range(4)][-1].endswith("temperature=0.1")
    assert len(looked_at) == 1


def test_of_very_many_reasons_the_first_are_told() -> None:
    plan = plan_study({"model": "m", "sweep": {"n": [-number for number in range(MAX_LISTED + 7)]}}, None, {})
    lines = list(preview(plan))
    assert lines[-3] == "  ✗ 7 more points, for other reasons"
    assert sum(json.dumps("✗")[1:-1] in json.dumps(line) for line in lines) == MAX_LISTED + 1


@pytest.mark.parametrize("list_all", [False, True])
def test_ten_times_the_points_take_no_more_memory(list_all: bool) -> None:
    def go_through(plan: StudyPlan) -> None:
        for _ in preview(plan, list_all=list_all):
            pass

    go_through(plan_of(SMALL))  # what is made once
    small, large = (peak_bytes(partial(go_through, plan_of(points))) for points in (SMALL, LARGE))
    assert (large - small) / (LARGE - SMALL) < MOST_BYTES_PER_POINT, (small, large)
