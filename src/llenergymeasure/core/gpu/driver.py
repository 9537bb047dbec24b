"""What this package asks of a GPU driver: values with units in their names, an exception class per kind of failure.

`GpuDriver` is the role; `nvml.py` plays it for NVIDIA boards. Every call returns a value in watts, joules, MHz or MB,
or raises a `GpuDriverError`; a reading that the driver marks as unavailable is an error too, never a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from llenergymeasure.exceptions import EnergyError

GpuHandle = Any
"""An opaque device handle, good for as long as NVML is initialised."""

PowerScope = Literal["gpu", "module"]
"""What a power reading includes. On Grace Hopper the module scope holds the CPU as well."""

MB: Final = 1_000_000
"""Bytes per MB."""


class GpuDriverError(EnergyError):
    """NVML could not answer."""


class DriverMissingError(GpuDriverError):
    """There is no NVIDIA driver on this machine, or it is not loaded."""


class NotSupportedError(GpuDriverError):
    """This device or driver has no such reading."""


class PermissionDeniedError(GpuDriverError):
    """The reading exists, and this user may not have it."""


class DeviceNotFoundError(GpuDriverError):
    """No device has this UUID or index."""


class GpuLostError(GpuDriverError):
    """The GPU fell off the bus or needs a reset."""


class InvalidReadingError(GpuDriverError):
    """NVML answered with a value that stands for "no value"."""


@dataclass(frozen=True, slots=True)
class PowerReading:
    """One value of the instantaneous power field.

    Args:
        power_w: Power draw in watts.
        wall_time_s: When the driver took it, in seconds since 1970; `None` where it does not tell.
        scope: What it includes.
    """

    power_w: float
    wall_time_s: float | None
    scope: PowerScope


class GpuDriver(Protocol):
    """What this package asks of NVML."""

    def driver_version(self) -> str:
        """Driver version, e.g. `570.86.15`."""

    def device_handles(self) -> tuple[GpuHandle, ...]:
        """All boards in order of PCI bus address, which is NVML's order."""

    def handle_by_uuid(self, uuid: str) -> GpuHandle:
        """The board or MIG instance with this full UUID."""

    def uuid(self, handle: GpuHandle) -> str:
        """`GPU-…` or `MIG-…`."""

    def name(self, handle: GpuHandle) -> str:
        """Marketing name, e.g. `NVIDIA H100 80GB HBM3`."""

    def mig_handles(self, handle: GpuHandle) -> tuple[GpuHandle, ...]:
        """MIG instances of a board; empty where MIG is off or unknown to it."""

    def mig_parent(self, handle: GpuHandle) -> GpuHandle:
        """The board that a MIG instance is a slice of."""

    def power_instant(self, handle: GpuHandle) -> PowerReading:
        """Power over the sensor's own window (field 186)."""

    def power_usage_w(self, handle: GpuHandle) -> float:
        """Power in watts by `nvmlDeviceGetPowerUsage`: a one-second average on most boards since Ampere."""

    def total_energy_j(self, handle: GpuHandle) -> float:
        """Joules since the driver was loaded (Volta and later)."""

    def power_limit_w(self, handle: GpuHandle) -> float:
        """The enforced power limit in watts."""

    def default_power_limit_w(self, handle: GpuHandle) -> float:
        """The factory power limit in watts."""

    def temperature_c(self, handle: GpuHandle) -> float:
        """GPU temperature in degrees Celsius."""

    def sm_clock_mhz(self, handle: GpuHandle) -> float:
        """Streaming-multiprocessor clock in MHz."""

    def memory_clock_mhz(self, handle: GpuHandle) -> float:
        """Memory clock in MHz."""

    def sm_utilisation_pct(self, handle: GpuHandle) -> float:
        """Share of the driver's last sample period in which a kernel ran, 0..100."""

    def max_sm_clock_mhz(self, handle: GpuHandle) -> float:
        """Highest streaming-multiprocessor clock in MHz."""

    def fan_speed_pct(self, handle: GpuHandle) -> float:
        """Fan speed in per cent of its maximum."""

    def memory_used_mb(self, handle: GpuHandle) -> float:
        """Device memory in use, in MB."""

    def memory_free_mb(self, handle: GpuHandle) -> float:
        """Device memory that nobody uses, in MB."""

    def memory_total_mb(self, handle: GpuHandle) -> float:
        """Device memory in all, in MB."""

    def compute_capability(self, handle: GpuHandle) -> str:
        """CUDA compute capability, e.g. `9.0`."""

    def pcie_generation(self, handle: GpuHandle) -> int:
        """PCIe generation of the current link."""

    def mig_enabled(self, handle: GpuHandle) -> bool:
        """Whether a board is cut into MIG instances."""

    def throttle_reasons(self, handle: GpuHandle) -> int:
        """The clocks-event-reasons bit mask."""

    def compute_pids(self, handle: GpuHandle) -> tuple[int, ...]:
        """Process ids, in the driver's view, that hold a compute context on the device."""

    def persistence_mode(self, handle: GpuHandle) -> bool:
        """Whether the driver stays loaded while nobody uses the device."""

    def energy_includes_module(self, handle: GpuHandle) -> bool:
        """Whether the energy counter covers a whole superchip (Grace Hopper), its CPU included."""
