"""What a figure declares beside its type and description: how it merges over processes, and its column in tables.

    baseline_power_w: Annotated[float | None, Merge(total, counted=True), Column(26, "W", "Idle power of the devices")]

Aggregation and export read these declarations, so that a new figure is its declaration and what measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, TypeVar

from llenergymeasure.domain.base import Record

K = TypeVar("K")
T = TypeVar("T")
RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True, slots=True)
class Merge:
    """How one figure comes from those of several processes.

    Args:
        rule: Gets the values in the order of the process indices.
        source: Dotted path of the values in the records; the figure's own name by default.
        counted: Whether only records whose energy counts take part, so that a shared device is not counted twice.
    """

    rule: Callable[[Sequence[Any]], Any]
    source: str = ""
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the flat row, for CSV and Parquet.

    Args:
        position: Its place, from 1. Never changes within 2.x: a new column takes the next free one.
        unit: Unit of its values, or "".
        text: What it holds; by default what the figure's own description says.
        name: By default the figure's own. Never changes within 2.x either.
        at: Dotted path of the value within the figure, where the figure is a record.
    """

    position: int
    unit: str = ""
    text: str = ""
    name: str = ""
    at: str = ""


def columns_in(metadata: Iterable[object]) -> Iterator[Column]:
    """The columns among what is declared about a figure, alone or several at once."""
    for declared in metadata:
        for column in declared if isinstance(declared, tuple) else (declared,):
            if isinstance(column, Column):
                yield column


def merge_figures(model: type[Record], records: Sequence[Record], counted: Sequence[Record]) -> dict[str, Any]:
    """Every figure of `model` that declares how it merges, merged.

    Args:
        counted: Those of `records` whose energies add up to the experiment's.
    """
    merged = {}
    for name, field in model.model_fields.items():
        for merge in field.metadata:
            if isinstance(merge, Merge):
                read = attrgetter(merge.source or name)
                merged[name] = merge.rule([read(record) for record in (counted if merge.counted else records)])
    return merged


def merge_records(parts: Sequence[RecordT]) -> RecordT:
    """One record of several, at least one: each field by the rule declared with it, else as the first has it."""
    return parts[0].model_copy(update=merge_figures(type(parts[0]), parts, parts))


def first(values: Sequence[T]) -> T:
    """The first process's value, of what all have in common."""
    return values[0]


def total(values: Iterable[float | None]) -> float | None:
    """Sum of all values, or `None` when one is unknown or there are none."""
    known = complete(list(values))
    return None if known is None else math.fsum(known)


def count(values: Sequence[int | None]) -> int | None:
    """Sum of whole numbers, or `None` when one is unknown."""
    known = complete(values)
    return None if known is None else sum(known)


def largest(values: Iterable[float | None]) -> float | None:
    """The largest known value."""
    return max((value for value in values if value is not None), default=None)


def only(values: Iterable[Hashable]) -> Hashable:
    """The value that all share, or `None` when they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def distinct(values: Iterable[Iterable[T]]) -> list[T]:
    """The entries of all lists, each once, in the order of first appearance."""
    return list(dict.fromkeys(joined(values)))


def united(values: Iterable[Mapping[K, T]]) -> dict[K, T]:
    """The entries of all mappings."""
    return {key: entry for value in values for key, entry in value.items()}


def joined(values: Iterable[Iterable[T]]) -> list[T]:
    """The entries of all lists, one after the other."""
    return [entry for value in values for entry in value]


def complete(values: Sequence[T | None]) -> list[T] | None:
    """The values, or `None` when one is unknown or there are none."""
    known = [value for value in values if value is not None]
    return known if known and len(known) == len(values) else None


def of_all(rule: Callable[[list[T]], T]) -> Callable[[Sequence[T | None]], T | None]:
    """`rule` where every process has a value; what is not known of all is not known."""

    def merged(values: Sequence[T | None]) -> T | None:
        known = complete(values)
        return None if known is None else rule(known)

    return merged


def of_known(rule: Callable[[list[Any]], T | None]) -> Callable[[Sequence[Any]], T | None]:
    """`rule` over the values that are there."""

    def merged(values: Sequence[Any]) -> T | None:
        known = [value for value in values if value is not None]
        return rule(known) if known else None

    return merged


Total = Annotated[T, Merge(total)]
Largest = Annotated[T, Merge(largest)]
Same = Annotated[T, Merge(only)]
First = Annotated[T, Merge(first)]
AllOf = Annotated[T, Merge(all)]
AnyOf = Annotated[T, Merge(any)]
"""The common rules, for the figures of a record: `power_w: Total[float | None]`."""
