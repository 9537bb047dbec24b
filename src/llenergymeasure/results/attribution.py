"""Which joules belong to the experiment: every device once, however many processes used it.

A meter sees whole devices. Two processes on one GPU each report that GPU's energy, so their figures must not be added:

    process 0:  GPU-a ─┐                       process 2:  GPU-b  ── counted
    process 1:  GPU-a ─┴─ the longer window                              (a device of its own)
                          is counted
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from llenergymeasure.domain.base import as_utc, joined
from llenergymeasure.domain.experiment import RawProcessResult
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

MIN_OVERLAP_PCT: Final = 90.0
"""Time common to all windows, in per cent of first start to last end, above which processes ran side by side."""

_COVERAGE_TOLERANCE: Final = 0.01
"""Fraction of the common window that may be missing from the window whose energy is counted for a shared device."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whose energy counts.

    Args:
        counted: Records whose energies add up to the experiment's; none when they cannot be told apart.
        shared_devices: Devices used by several processes, with the indices of those.
        verified: Whether every joule was traced to a named device and counted once.
    """

    counted: tuple[RawProcessResult, ...]
    shared_devices: dict[str, list[int]]
    verified: bool
    warnings: tuple[MeasurementWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class CommonWindow:
    """The windows of all processes on one time axis, from first start to last end.

    Args:
        overlap_pct: Time common to all windows, in per cent of `length_sec`.
    """

    start: datetime
    length_sec: float
    overlap_pct: float

    @property
    def side_by_side(self) -> bool:
        """Whether the processes ran at the same time for all practical purposes."""
        return self.overlap_pct >= MIN_OVERLAP_PCT


def attribute_energy(records: Sequence[RawProcessResult]) -> Attribution:
    """Choose the records whose energies are summed, so that no device is counted twice."""
    users: dict[str, list[int]] = defaultdict(list)
    for record in records:
        for device in sorted(devices_of(record)):
            users[device].append(record.process_index)
    shared = {device: indices for device, indices in users.items() if len(indices) > 1}
    counted: list[RawProcessResult] = []
    warnings: list[MeasurementWarning] = []
    for group in _groups_by_device(records):
        chosen = _widest(group)
        if chosen is None:
            return Attribution((), shared, verified=False, warnings=(_entangled(group),))
        counted.append(chosen)
        if len(group) > 1:
            warnings.append(_shared_warning(group, chosen))
    unnamed = [record for record in records if not devices_of(record)]
    if unnamed and len(records) > 1:
        text = (
            f"processes {_indices(unnamed)} do not name their devices; a device used by several of them would be "
            "counted more than once"
        )
        warnings.append(MeasurementWarning(WarningCode.ENERGY_ATTRIBUTION_UNVERIFIED, text))
    return Attribution(tuple(counted), shared, verified=not unnamed, warnings=tuple(warnings))


def common_window(records: Sequence[RawProcessResult]) -> CommonWindow:
    """Put the processes' windows on one time axis.

    With one process the length is its own, by the monotonic clock. With several the wall clock tells how they lie to
    each other; a step of that clock cannot make the common window shorter than the longest single one.
    """
    windows = [counted_window(record) for record in records]
    start, end = min(w[0] for w in windows), max(w[1] for w in windows)
    longest_sec = max(record.inference_metrics.inference_time_sec for record in records)
    if len(records) == 1:
        return CommonWindow(start, longest_sec, overlap_pct=100.0)
    length_sec = max((end - start).total_seconds(), longest_sec)
    shared_sec = (min(w[1] for w in windows) - max(w[0] for w in windows)).total_seconds()
    return CommonWindow(start, length_sec, 100 * max(shared_sec, 0.0) / length_sec if length_sec else 0.0)


def counted_window(record: RawProcessResult) -> tuple[datetime, datetime]:
    """The part of a process's run that its figures are about, on the wall clock (UTC).

    A `windowed` measurement counts less than `timestamps` span; then the offsets from the experiment's beginning tell.
    """
    if record.measurement_methodology == "windowed" and record.steady_state_window and record.started_at:
        began = as_utc(record.started_at)
        start_sec, end_sec = record.steady_state_window
        return began + timedelta(seconds=start_sec), began + timedelta(seconds=end_sec)
    return as_utc(record.timestamps.start), as_utc(record.timestamps.end)


def devices_of(record: RawProcessResult) -> frozenset[str]:
    """The devices that a process's energy was measured on: UUIDs, else an index; empty when it does not say."""
    if record.energy_per_device_j:
        return frozenset(record.energy_per_device_j)
    if record.measurement_boundary is not None:
        return frozenset(record.measurement_boundary.devices)
    return frozenset() if record.gpu_id is None else frozenset({f"GPU {record.gpu_id}"})


def _groups_by_device(records: Sequence[RawProcessResult]) -> list[list[RawProcessResult]]:
    """Records that are linked by shared devices, directly or through others."""
    groups: list[list[RawProcessResult]] = []
    for record in records:
        devices = devices_of(record)
        linked = [group for group in groups if any(devices & devices_of(member) for member in group)]
        apart = [group for group in groups if all(devices.isdisjoint(devices_of(member)) for member in group)]
        groups = [*apart, [*joined(reversed(linked)), record]]
    return groups


def _widest(group: Sequence[RawProcessResult]) -> RawProcessResult | None:
    """The record of the longest window, if it covers every device of the group."""
    everything = frozenset[str]().union(*(devices_of(record) for record in group))
    covering = [record for record in group if devices_of(record) == everything]
    return max(covering, key=lambda record: record.energy_metrics.duration_sec, default=None)


def _shared_warning(group: Sequence[RawProcessResult], chosen: RawProcessResult) -> MeasurementWarning:
    union_sec = common_window(group).length_sec
    counted_sec = chosen.energy_metrics.duration_sec
    missed = max(0.0, 1 - counted_sec / union_sec) if union_sec else 0.0
    text = f"processes {_indices(group)} share {', '.join(sorted(devices_of(chosen)))}; its energy is counted once"
    if missed > _COVERAGE_TOLERANCE:
        text += f", over {counted_sec:.1f} s of the {union_sec:.1f} s in which any of them ran: a lower bound"
    return MeasurementWarning(WarningCode.DEVICE_SHARED_BY_PROCESSES, text)


def _entangled(group: Sequence[RawProcessResult]) -> MeasurementWarning:
    return MeasurementWarning(
        WarningCode.ENERGY_UNAVAILABLE,
        f"processes {_indices(group)} share some devices and not others, so their energies can neither be added nor "
        "told apart. Give each process devices of its own, or all of them the same.",
    )


def _indices(group: Sequence[RawProcessResult]) -> str:
    return ", ".join(str(record.process_index) for record in group)
