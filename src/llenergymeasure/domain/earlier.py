"""What release 2.0.0 wrote otherwise, read as this release has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llenergymeasure.domain.energy import energies_in_order

MB_PER_MIB: Final = 2**20 / 1e6


def as_now(data: Any) -> Any:
    """The fields of a result, those of a file of 2.0.0 turned into today's.

    2.0.0 kept joules by device in `energy_per_device_j`, and GPU memory in MB of 2^20 bytes. Its files are known by
    lacking `energy_by_device_j`, which every later one has.
    """
    if not isinstance(data, Mapping) or "energy_by_device_j" in data:
        return data
    now = dict(data)
    by_device, boundary = data.get("energy_per_device_j"), data.get("measurement_boundary")
    if isinstance(by_device, Mapping):
        devices = boundary.get("devices", ()) if isinstance(boundary, Mapping) else getattr(boundary, "devices", ())
        now |= {
            "energy_by_device_j": by_device,
            "energy_per_device_j": energies_in_order(by_device, devices),
        }
    if isinstance(snapshot := data.get("environment_snapshot"), Mapping):
        now["environment_snapshot"] = _in_mb(snapshot)
    return now


def _in_mb(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    now = {**snapshot, "gpu_vram_mb": [_converted(size) for size in snapshot.get("gpu_vram_mb") or ()]}
    hardware = snapshot.get("hardware")
    if isinstance(hardware, Mapping) and isinstance(gpu := hardware.get("gpu"), Mapping):
        now["hardware"] = {**hardware, "gpu": {**gpu, "vram_total_mb": _converted(gpu.get("vram_total_mb"))}}
    return now


def _converted(size_mib: Any) -> Any:
    """A size in MB of 10^6 bytes; what is no number stays, for validation to name."""
    return size_mib * MB_PER_MIB if isinstance(size_mib, (int, float)) else size_mib
