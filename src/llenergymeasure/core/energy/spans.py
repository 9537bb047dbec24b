"""Stretches of time on the measurement clock: put together, and with holes cut out of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Span = tuple[float, float]
"""A stretch of time: start and end on the measurement clock, in seconds."""


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """The same stretches of time without overlaps, in order; ones that touch become one."""
    merged: list[Span] = []
    for begins_s, ends_s in sorted(spans):
        if merged and begins_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], ends_s))
        else:
            merged.append((begins_s, ends_s))
    return merged


def without(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """`spans` minus `holes`; both in order and without overlaps of their own."""
    left: list[Span] = []
    ends = [end_s for _, end_s in holes]
    for start_s, end_s in spans:
        left_s = start_s
        for index in range(bisect_right(ends, start_s), len(holes)):
            hole_start_s, hole_end_s = holes[index]
            if hole_start_s >= end_s:
                break
            if hole_start_s > left_s:
                left.append((left_s, hole_start_s))
            left_s = max(left_s, hole_end_s)
        if left_s < end_s:
            left.append((left_s, end_s))
    return left
