"""What every record here is made of: its base, the types of its fields, and what a figure declares.

    baseline_power_w: Annotated[float | None, Merge(total, counted=True), Column(26, "W", "Idle power of the devices")]

`Merge` says how a figure comes from several processes, `Column` where it stands in tables. Aggregation and export read
these declarations, so that a new figure is its declaration and what measures it.
"""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

EnergyMethod = Literal["hardware_counter", "power_integration", "model_estimate"]
"""How joules were found: a meter's own counter, the integral of power samples, or a model (an estimate)."""

EnergyScope = Literal[
    "gpu", "gpu_module", "gpu_board", "cpu_package", "cpu_package_and_dram", "machine_model", "machine"
]
"""What joules include. `gpu_board`: the parent board of a MIG slice. `machine_model`: CPU and RAM as modelled.
`machine`: all of it, as a meter at its supply sees it."""

SchemaVersion = Annotated[str, Field(pattern=r"^2\.\d+$", description="Schema of this record.")]

Methodology = Literal["total", "steady_state", "windowed"]
"""Warm-up off; warm-up run and excluded; only part of the generation counted."""

Confidence = Literal["high", "medium", "low"]
"""How far a counted figure can be trusted; best first."""


class Record(BaseModel):
    """Frozen data between layers: no unknown fields, no NaN, no infinity (JSON has none of the two)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Printed(Record):
    """A record that people print: it shows itself in one line."""

    @abstractmethod
    def headline(self) -> str:
        """The record in one line."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.headline()}>"

    def __str__(self) -> str:
        return repr(self)


def optional(description: str, ge: int | None = None) -> Any:
    """A field that may be null, and is unless it is given: not measured, not known, not there."""
    return Field(default=None, ge=ge, description=description)


def empty(kind: Callable[[], object], description: str) -> Any:
    """A field that holds an empty `kind`, say a list, unless it is given."""
    return Field(default_factory=kind, description=description)


def as_utc(moment: datetime) -> datetime:
    """`moment` in UTC; one without a time zone is taken as UTC."""
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


def _moment(value: datetime) -> datetime:
    try:
        return as_utc(value)
    except OverflowError as error:  # beside the first or last year
        raise ValueError("no such moment in UTC") from error


Moment = Annotated[datetime, AfterValidator(_moment)]
"""A date in UTC; one without a time zone is taken as UTC."""


def json_ready(value: Any) -> Any:
    """`value` in types that survive a JSON round trip unchanged.

    Tuples and sets become lists, keys and unknown objects (a `torch.dtype`, say) their text, and a float without a JSON
    form the text `inf`, `-inf` or `nan`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((json_ready(item) for item in value), key=str)
    return str(value)


JsonDict = Annotated[dict[str, Any], BeforeValidator(json_ready)]
"""A mapping as it will stand in a JSON file, see `json_ready`."""


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


def complete(values: Iterable[T | None]) -> list[T] | None:
    """The values, or `None` when one is unknown or there are none."""
    everything = list(values)
    known = [value for value in everything if value is not None]
    return known if known and len(known) == len(everything) else None


def of_all(rule: Callable[[list[Any]], T]) -> Callable[[Iterable[Any]], T | None]:
    """`rule` where every process has a value; what is not known of all is not known."""

    def merged(values: Iterable[Any]) -> T | None:
        known = complete(values)
        return None if known is None else rule(known)

    return merged


def of_known(rule: Callable[[list[Any]], T]) -> Callable[[Iterable[Any]], T | None]:
    """`rule` over the values that are there."""

    def merged(values: Iterable[Any]) -> T | None:
        known = [value for value in values if value is not None]
        return rule(known) if known else None

    return merged


total = of_all(math.fsum)
count: Callable[[Iterable[int | None]], int | None] = of_all(sum)
largest: Callable[[Iterable[float | None]], float | None] = of_known(max)
mean: Callable[[Iterable[float | None]], float | None] = of_known(statistics.fmean)


def first(values: Sequence[T]) -> T:
    """The first process's value, of what all have in common."""
    return values[0]


def only(values: Iterable[T | None]) -> T | None:
    """The value that all share, or `None` when they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def joined(values: Iterable[Iterable[T]]) -> list[T]:
    """The entries of all lists, one after the other."""
    return [entry for value in values for entry in value]


def distinct(values: Iterable[Iterable[T]]) -> list[T]:
    """The entries of all lists, each once, in the order of first appearance."""
    return list(dict.fromkeys(joined(values)))


def united(values: Iterable[Mapping[K, T]]) -> dict[K, T]:
    """The entries of all mappings."""
    return {key: entry for value in values for key, entry in value.items()}


Total = Annotated[T, Merge(total)]
Count = Annotated[T, Merge(count)]
Largest = Annotated[T, Merge(largest)]
Same = Annotated[T, Merge(only)]
First = Annotated[T, Merge(first)]
AllOf = Annotated[T, Merge(all)]
AnyOf = Annotated[T, Merge(any)]
"""The common rules, for the figures of a record: `power_w: Total[float | None]`."""
