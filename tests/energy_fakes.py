"""Power samples made by hand, and a powercap tree on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.meter import Meter
from llenergymeasure.core.energy.strategies import CounterStrategy
from llenergymeasure.core.energy.telemetry import (
    COLUMNS,
    SOURCES,
    UNKNOWN,
    Columns,
    SampleLog,
    Telemetry,
    TelemetrySample,
)
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.driver import DeviceId, GpuDriver, find_gpus


def listed(samples: Mapping[DeviceId, Sequence[TelemetrySample]]) -> Telemetry:
    """Telemetry of these samples."""
    return Telemetry({device: logged(given) for device, given in samples.items()})


def logged(samples: Iterable[TelemetrySample], log: SampleLog | None = None) -> SampleLog:
    """A log of these samples."""
    log = SampleLog() if log is None else log
    for sample in samples:
        log.append(sample)
    return log


def rows(columns: Iterable[Columns]) -> list[TelemetrySample]:
    """The samples in these columns."""
    found = (row for block in columns for row in zip(*block, strict=True))
    return [TelemetrySample(*map(_answer, COLUMNS, row)) for row in found]


def _answer(name: str, value: float) -> object:
    if math.isnan(value) or (name in ("throttle_reasons", "power_source") and value == UNKNOWN):
        return None
    return SOURCES[int(value)] if name == "power_source" else value


def steady(power_w: float, start_s: float, end_s: float, step_s: float = 0.1, **more: float) -> list[TelemetrySample]:
    """Samples of the same power from just before to just after a window."""
    count = round((end_s - start_s) / step_s) + 2
    return [TelemetrySample(start_s + (i - 0.5) * step_s, power_w, **more) for i in range(count)]  # type: ignore[arg-type]


def measured(
    samples: Mapping[DeviceId, Sequence[TelemetrySample]] | None,
    start_s: float = 0.0,
    end_s: float = 20.0,
    total_j: float | None = None,
) -> EnergyMeasurement:
    """A window with these samples."""
    telemetry = None if samples is None else listed(samples)
    return EnergyMeasurement(
        start_s=start_s,
        end_s=end_s,
        total_j=total_j,
        method="hardware_counter",
        scope="gpu",
        telemetry=telemetry,
        meter="nvml",
    )


def nvml_meter(devices: Sequence[DeviceId], nvml: GpuDriver, clock: Clock, options: MeterOptions) -> Meter:
    """The meter of these GPUs by their driver's counters."""
    return Meter(CounterStrategy(find_gpus(devices, nvml), clock, options), clock, options)


def farthest_j(half_width_j: float) -> float:
    """How far from the truth a counter's figure can be at all, in joules, by its 95 % half-width.

    What it lags behind by at an edge is anything up to an update. The half-width adds the edges as squares; at worst
    one of them is all there is, and the figure is off by the whole width of its rectangle.
    """
    return math.sqrt(12.0) / 1.96 * half_width_j


class PowercapTree:
    """A made-up `/sys/class/powercap`, whose counters a test moves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def zone(self, zone: str, name: str, *, joules: float = 0.0, range_j: float = 262_143.0) -> Path:
        """Add a zone: `intel-rapl:0` at the root, `intel-rapl:0:1` inside its package."""
        parts = zone.split(":")
        directory = self.root / ":".join(parts[:2]) / zone if len(parts) > 2 else self.root / zone
        directory.mkdir(parents=True)
        (directory / "name").write_text(f"{name}\n")
        (directory / "max_energy_range_uj").write_text(f"{round(range_j * 1e6)}\n")
        self.set(directory, joules)
        return directory

    def set(self, zone: Path, joules: float) -> None:
        """Let a counter show so many joules; like the kernel, never half a number."""
        partial = zone / "energy_uj.partial"
        partial.write_text(f"{round(joules * 1e6)}\n")
        partial.replace(zone / "energy_uj")


def timed(started_s: float, times_s: list[float] | None, input_tokens: int = 100) -> RequestOutput:
    """A request with a token at each of these times; three whose times are not told."""
    tokens = (7,) * (3 if times_s is None else len(times_s))
    return RequestOutput(0, input_tokens, tokens, "length", started_s, times_s)
