"""Request latencies: what one process saw of each request, and the statistics of all of them together.

|-- queue --|------- TTFT -------|-- ITL --|-- ITL --| ... |-- ITL --|
submitted   started           token 1   token 2   token 3        last token
            |------------------------- e2e --------------------------|
"""

from __future__ import annotations

import base64
import math
import statistics
import sys
from array import array
from collections.abc import Iterable, Sequence, Sized
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator
from typing_extensions import Self

from llenergymeasure.domain.base import Column, Merge, Record, complete, joined, of_all, only, optional

HISTOGRAM_BINS = 40


def _parse_array(value: object, typecode: Literal["f", "d"]) -> array[float]:
    if isinstance(value, str):
        numbers = array(typecode)
        numbers.frombytes(base64.b64decode(value, validate=True))
        if sys.byteorder == "big":
            numbers.byteswap()
    elif isinstance(value, Iterable):
        try:
            numbers = array(typecode, value)
        except TypeError as error:
            raise ValueError(f"expected numbers: {error}") from error
    else:
        raise ValueError("expected numbers, or their little-endian bytes in base64")
    if not all(map(math.isfinite, numbers)):
        raise ValueError("every number must be finite")
    return numbers


def _encode_array(numbers: array[float]) -> str:
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")


_TO_BASE64 = PlainSerializer(_encode_array, return_type=str)
_BASE64_SCHEMA = WithJsonSchema({"type": "string", "contentEncoding": "base64"})

if TYPE_CHECKING:
    _FloatArray = array[float]
else:
    _FloatArray = array  # not subscriptable at run time before Python 3.12

Float32Array = Annotated[
    _FloatArray, PlainValidator(lambda value: _parse_array(value, "f")), _TO_BASE64, _BASE64_SCHEMA
]
"""Numbers at 4 bytes each (7 significant digits), for what there is one of per token; base64 in JSON."""

Float64Array = Annotated[
    _FloatArray, PlainValidator(lambda value: _parse_array(value, "d")), _TO_BASE64, _BASE64_SCHEMA
]
"""Numbers at 8 bytes each, for what there is one of per request; base64 in JSON."""


ShareRule = Literal["steps", "instants"]
"""How energy is shared over requests: step of the engine by step, or between the instants of requests at even rates."""


class RequestTimings(Record):
    """Every request of one process in columns, one entry per request, plus all inter-token gaps in one column."""

    input_tokens: list[int] = Field(description="Input tokens of each request, after truncation.")
    output_tokens: list[int] = Field(description="Output tokens of each request, up to and including EOS.")
    e2e_ms: Float64Array = Field(description="From the engine's start on the request to its last token, in ms.")
    ttft_ms: Float64Array | None = optional(
        "From the engine's start on the request to its first token, in ms; null: not told."
    )
    queue_ms: Float64Array | None = optional("Waiting in the engine before the start, in ms; null: not told.")
    itl_ms: Float32Array | None = optional("All gaps between consecutive tokens of a request, in ms; null: not told.")
    energy_j: Float64Array | None = optional("Share of each in the window's energy, in joules; null: see the reason.")
    energy_half_width_j: Float64Array | None = optional(
        "95 % half-width of each, without the sensor's gain, in joules."
    )
    energy_rule: ShareRule | None = optional(
        "By what it was shared: the engine's steps, or the instants of requests; null: not shared, or not told."
    )
    energy_reason: str | None = optional("Why there are no joules of single requests; null: there are.")

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> Self:
        for name in ("output_tokens", "e2e_ms", "ttft_ms", "queue_ms", "energy_j", "energy_half_width_j"):
            column: Sized | None = getattr(self, name)
            if column is not None and len(column) != len(self.input_tokens):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.input_tokens)} requests")
        return self

    def tpot_ms(self) -> list[float]:
        """Time per output token after the first, (e2e - TTFT) / (output tokens - 1), of requests with two and more."""
        if self.ttft_ms is None:
            return []
        columns = zip(self.e2e_ms, self.ttft_ms, self.output_tokens, strict=True)
        return [(e2e - ttft) / (tokens - 1) for e2e, ttft, tokens in columns if tokens > 1]


class Percentiles(Record):
    """Location and spread of one quantity, in the unit that the field holding it names."""

    count: int = Field(ge=1, description="Number of values.")
    mean: float = Field(description="Arithmetic mean.")
    p50: float = Field(description="Median.")
    p90: float = Field(description="90th percentile.")
    p95: float = Field(description="95th percentile.")
    p99: float = Field(description="99th percentile.")
    min: float = Field(description="Smallest value.")
    max: float = Field(description="Largest value.")


class Histogram(Record):
    """Counts of values in adjoining bins of equal width; the last bin includes its upper edge."""

    bin_edges: list[float] = Field(description="Bin edges in ascending order, one more than there are bins.")
    counts: list[int] = Field(description="Values in each bin.")


def _columns(position: int, name: str, text: str, unit: str = "ms") -> tuple[Column, ...]:
    spread = {"mean": "mean", "p50": "median", "p95": "95th percentile", "p99": "99th percentile"}
    return tuple(
        Column(position + offset, unit, f"{text}, {title}", f"{name}_{statistic}_{unit.lower()}", statistic)
        for offset, (statistic, title) in enumerate(spread.items())
    )


class LatencyStatistics(Record):
    """Latencies over all requests of all processes at once, in milliseconds; null where the engine does not tell."""

    ttft_ms: Annotated[Percentiles | None, _columns(34, "ttft", "Time to first token")] = optional(
        "Time to first token, in ms."
    )
    itl_ms: Annotated[Percentiles | None, _columns(38, "itl", "Inter-token latency")] = optional(
        "Inter-token latency, every gap of its own, in ms."
    )
    tpot_ms: Annotated[Percentiles | None, _columns(42, "tpot", "Time per output token")] = optional(
        "Time per output token of each request, in ms."
    )
    e2e_ms: Annotated[Percentiles | None, _columns(46, "e2e", "End-to-end latency")] = optional(
        "Start on the request to its last token, in ms."
    )
    queue_ms: Percentiles | None = optional("Waiting before the start, in ms.")
    ttft_histogram: Histogram | None = optional("Distribution of TTFT, edges in ms.")
    itl_histogram: Histogram | None = optional("Distribution of ITL, edges in ms.")
    e2e_histogram: Histogram | None = optional("Distribution of end-to-end times, edges in ms.")


class RequestEnergy(Record):
    """Joules of single requests over all processes: shares of the meter's figure, which add up to it."""

    energy_j: Annotated[Percentiles | None, _columns(64, "request_energy", "Energy of a request", "J")] = optional(
        "Energy of a request, in joules; null: see the reason."
    )
    stdev_j: float | None = optional("Standard deviation over the requests, in joules.")
    half_width_j: Percentiles | None = optional(
        "95 % half-widths, without the sensor's gain, of the requests nearest to the values of energy_j (of the mean: "
        "their mean), in joules."
    )
    reason: str | None = optional("Why there are no joules of single requests; null: there are.")


def percentile(ordered: Sequence[float], q: float) -> float:
    """The `q`-th percentile of ascending values, by linear interpolation between order statistics.

    Definition 7 of Hyndman and Fan (1996), "Sample Quantiles in Statistical Packages"; numpy's default.

    Raises:
        ValueError: No values, or `q` outside 0..100.
    """
    if not ordered:
        raise ValueError("a percentile needs at least one value")
    if not 0 <= q <= 100:
        raise ValueError(f"percentile must be within 0..100, not {q}")
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    fraction = position - below
    if fraction == 0:
        return ordered[below]
    return ordered[below] + (ordered[below + 1] - ordered[below]) * fraction


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """Statistics of `values`, or `None` when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Percentiles(
        count=len(ordered),
        mean=min(max(math.fsum(ordered) / len(ordered), ordered[0]), ordered[-1]),  # rounding must not leave the range
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        min=ordered[0],
        max=ordered[-1],
    )


def histogram(values: Sequence[float], bins: int = HISTOGRAM_BINS) -> Histogram | None:
    """Counts of `values` in `bins` equal bins between the smallest and the largest, or `None` when there are none."""
    if not values:
        return None
    low, high = min(values), max(values)
    width = (high - low) / bins
    if width == 0:
        return Histogram(bin_edges=[low, high], counts=[len(values)])
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return Histogram(bin_edges=[low + i * width for i in range(bins)] + [high], counts=counts)


def pool_latencies(processes: Iterable[RequestTimings]) -> LatencyStatistics | None:
    """Statistics over every request of every process, `None` without any; averages of averages hide the slow one."""
    timings = list(processes)
    if not timings:
        return None
    ttft_ms = joined(t.ttft_ms or () for t in timings)
    itl_ms = joined(t.itl_ms or () for t in timings)
    e2e_ms = joined(t.e2e_ms for t in timings)
    return LatencyStatistics(
        ttft_ms=percentiles(ttft_ms),
        itl_ms=percentiles(itl_ms),
        tpot_ms=percentiles(joined(t.tpot_ms() for t in timings)),
        e2e_ms=percentiles(e2e_ms),
        queue_ms=percentiles(joined(t.queue_ms or () for t in timings)),
        ttft_histogram=histogram(ttft_ms),
        itl_histogram=histogram(itl_ms),
        e2e_histogram=histogram(e2e_ms),
    )


def pool_requests(processes: Iterable[RequestTimings]) -> RequestTimings:
    """Every request of every process, in their order, without the gaps between tokens; joules where all have them."""
    timings = list(processes)

    def column(values: Iterable[array[float] | None]) -> array[float] | None:
        columns = complete(values)
        return None if columns is None else array("d", joined(columns))

    return RequestTimings(
        input_tokens=joined(one.input_tokens for one in timings),
        output_tokens=joined(one.output_tokens for one in timings),
        e2e_ms=array("d", joined(one.e2e_ms for one in timings)),
        ttft_ms=column(one.ttft_ms for one in timings),
        queue_ms=column(one.queue_ms for one in timings),
        energy_j=column(one.energy_j for one in timings),
        energy_half_width_j=column(one.energy_half_width_j for one in timings),
        energy_rule=only(one.energy_rule for one in timings),
        energy_reason=next((one.energy_reason for one in timings if one.energy_reason), None),
    )


Requests = Annotated[
    RequestTimings | None,
    Field(
        description="Tokens, latencies and joules of each request, in columns; a result leaves out the gaps of tokens."
    ),
    Merge(of_all(pool_requests)),
]


def pool_request_energy(processes: Iterable[RequestTimings | None], shared: bool) -> RequestEnergy:
    """Joules of every request of every process; there are all of them, or none.

    Args:
        processes: `None` for one that knows no instants of tokens.
        shared: Whether processes used one device, whose energy each of them has shared over its own requests.
    """
    told = list(processes)
    timings = [one for one in told if one is not None]
    reasons = [one.energy_reason or "it was not worked out" for one in timings if one.energy_j is None]
    if len(timings) < len(told) or not told:
        reasons.append("there are no instants of the tokens of whole requests")
    if reasons or shared:
        return RequestEnergy(reason=next(iter(reasons), "several processes shared a device"))
    drawn = sorted(
        zip(
            joined(t.energy_j or () for t in timings), joined(t.energy_half_width_j or () for t in timings), strict=True
        )
    )
    energy_j = [joules for joules, _ in drawn]
    found = percentiles(energy_j)
    if found is None:
        return RequestEnergy(reason="there are no requests")

    def width_of(joules: float) -> float:
        return min(drawn, key=lambda one: abs(one[0] - joules))[1]

    widths = {name: width_of(getattr(found, name)) for name in ("p50", "p90", "p95", "p99", "min", "max")}
    mean = math.fsum(width for _, width in drawn) / len(drawn)
    return RequestEnergy(
        energy_j=found,
        stdev_j=statistics.stdev(energy_j) if len(energy_j) > 1 else 0.0,
        half_width_j=Percentiles(count=len(drawn), mean=mean, **widths),
    )
