"""What this package asks of a GPU driver: values with units in their names, an exception class per kind of failure.

`GpuDriver` is the role; `nvml.py` plays it for NVIDIA boards. Every call returns a value in watts, joules, MHz or MB,
or raises a `GpuDriverError`; a reading that the driver marks as unavailable is an error too, never a number. `Gpu` is
one device of it, which answers `None` where it does not tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, Protocol, TypeVar

from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

DeviceId = str
"""A GPU's UUID as its driver prints it (`GPU-…`, `MIG-…`), or `CPU_DEVICE`."""

CPU_DEVICE: DeviceId = "cpu"

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
    """One value of the instantaneous power field; `wall_time_s` (since 1970) where the driver tells when it took it."""

    power_w: float
    wall_time_s: float | None
    scope: PowerScope


BufferedPower = tuple[int, float]
"""When the driver took a sample of power by itself, in µs since 1970 on the wall clock, and its watts."""


class GpuDriver(Protocol):
    """What this package asks of NVML."""

    def driver_version(self) -> str:
        """Driver version, e.g. `570.86.15`."""

    def device_count(self) -> int:
        """How many boards there are, those that this user may not use included."""

    def device_handle(self, index: int) -> GpuHandle:
        """One of them, in order of PCI bus address, which is NVML's order."""

    def uuid(self, handle: GpuHandle) -> str:
        """`GPU-…` or `MIG-…`."""

    def name(self, handle: GpuHandle) -> str:
        """Marketing name, e.g. `NVIDIA H100 80GB HBM3`."""

    def mig_handles(self, handle: GpuHandle) -> tuple[GpuHandle, ...]:
        """MIG instances of a board; empty where MIG is off or unknown to it."""

    def power_instant(self, handle: GpuHandle) -> PowerReading:
        """Power over the sensor's own window (field 186)."""

    def buffered_power(self, handle: GpuHandle, since_us: int) -> tuple[BufferedPower, ...]:
        """What the driver has sampled by itself after a time of the wall clock (µs since 1970), oldest first."""

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


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG instance. What it tells about itself is read when first asked for, and `None` if it does not.

    Args:
        board_uuid: The board whose sensors speak for it: its own, except for a MIG instance.
        own_handle: That of the device itself: a MIG instance's memory is its own.
        cuda_index: Index that a CUDA program uses for it; `None`: not known.
        instances: MIG instances of a board; empty where MIG is off.
    """

    uuid: DeviceId
    board_uuid: DeviceId
    index: int
    name: str
    driver: GpuDriver = field(repr=False, compare=False)
    handle: GpuHandle = field(repr=False, compare=False)
    own_handle: GpuHandle = field(repr=False, compare=False)
    cuda_index: int | None = None
    instances: tuple[Gpu, ...] = ()

    @property
    def is_mig(self) -> bool:
        """Whether this is only a slice of a board."""
        return self.uuid != self.board_uuid

    @cached_property
    def has_counter(self) -> bool:
        """Whether it has an energy counter; one that cannot be read for now counts as there: its reads will tell."""
        try:
            self.driver.total_energy_j(self.handle)
        except NotSupportedError:
            return False
        except GpuDriverError:
            return True
        return True

    @cached_property
    def includes_module(self) -> bool:
        """Whether its counter covers a whole superchip."""
        return self._ask(self.driver.energy_includes_module) or False

    @cached_property
    def compute_capability(self) -> str | None:
        """CUDA compute capability, e.g. `9.0`."""
        return self._ask(self.driver.compute_capability)

    @cached_property
    def memory_total_mb(self) -> float | None:
        """Device memory in MB (10^6 bytes)."""
        return self._ask(self.driver.memory_total_mb, of_board=False)

    @cached_property
    def memory_free_mb(self) -> float | None:
        """Of it, what nobody uses."""
        return self._ask(self.driver.memory_free_mb, of_board=False)

    @cached_property
    def pcie_generation(self) -> int | None:
        """PCIe generation of the current link."""
        return self._ask(self.driver.pcie_generation)

    @cached_property
    def mig_enabled(self) -> bool | None:
        """Whether the board is cut into MIG instances."""
        return self._ask(self.driver.mig_enabled)

    @cached_property
    def persistence_mode(self) -> bool | None:
        """Whether the driver stays loaded while nobody uses the board."""
        return self._ask(self.driver.persistence_mode)

    @cached_property
    def power_limit_w(self) -> float | None:
        """Enforced power limit in watts."""
        return self._ask(self.driver.power_limit_w)

    @cached_property
    def default_power_limit_w(self) -> float | None:
        """Factory power limit in watts."""
        return self._ask(self.driver.default_power_limit_w)

    @property
    def allowed_power_w(self) -> float | None:
        """What it may draw in watts: the larger of both limits, for an enforced one may be lifted at any time."""
        return max(filter(None, (self.power_limit_w, self.default_power_limit_w)), default=None)

    @cached_property
    def max_sm_clock_mhz(self) -> float | None:
        """Highest streaming-multiprocessor clock in MHz."""
        return self._ask(self.driver.max_sm_clock_mhz)

    @cached_property
    def temperature_c(self) -> float | None:
        """Temperature in degrees Celsius."""
        return self._ask(self.driver.temperature_c)

    @cached_property
    def fan_speed_pct(self) -> float | None:
        """Fan speed in per cent of its maximum."""
        return self._ask(self.driver.fan_speed_pct)

    def _ask(self, reading: Callable[[GpuHandle], _T], *, of_board: bool = True) -> _T | None:
        try:
            return reading(self.handle if of_board else self.own_handle)
        except NotSupportedError as error:
            logger.debug("%s: %s", self.board_uuid, error)
        except GpuDriverError as error:
            logger.warning("%s: %s", self.board_uuid, error)
        return None


def all_boards(driver: GpuDriver) -> tuple[Gpu, ...]:
    """Every board of the machine that answers, in the driver's order, whatever CUDA would show.

    One that is lost or denied to this user is left out, and the log says so: CUDA does not count it either. The others
    keep their NVML index.

    Raises:
        GpuDriverError: The driver could not list them, or none answers.
    """
    boards: list[Gpu] = []
    silent: list[GpuDriverError] = []
    for index in range(driver.device_count()):
        try:
            boards.append(_board(driver, index))
        except GpuDriverError as error:
            silent.append(error)
            logger.warning("GPU %d is left out: %s", index, error)
    if silent and not boards:
        raise silent[0]
    return tuple(boards)


def _board(driver: GpuDriver, index: int) -> Gpu:
    handle = driver.device_handle(index)
    uuid, name = driver.uuid(handle), driver.name(handle)
    instances = tuple(
        Gpu(driver.uuid(instance), uuid, index, name, driver, handle, own_handle=instance)
        for instance in driver.mig_handles(handle)
    )
    return Gpu(uuid, uuid, index, name, driver, handle, own_handle=handle, instances=instances)


def find_gpus(devices: Sequence[DeviceId], driver: GpuDriver) -> tuple[Gpu, ...]:
    """The GPUs with these UUIDs, in order; of several slices of one board the first, since its sensors see all of them.

    Raises:
        EnergyError: A device is not one of this machine's, or the driver failed.
    """
    known = {gpu.uuid: gpu for board in all_boards(driver) for gpu in (board, *board.instances)}
    found: dict[DeviceId, Gpu] = {}
    for device in devices:
        if device not in known:
            boards = ", ".join(uuid for uuid, gpu in known.items() if not gpu.is_mig)
            raise EnergyError(f"NVML knows no device {device}; it has {boards or 'none'}")
        found.setdefault(known[device].board_uuid, known[device])
    return tuple(found.values())


def free_memory_mb(gpus: Sequence[Gpu], *, one_copy_each: bool) -> float | None:
    """Memory that one copy of a model can use, in MB; `None` where a GPU does not tell, or there is none.

    All GPUs hold one copy together, unless each has a whole one.
    """
    known = [gpu.memory_free_mb for gpu in gpus if gpu.memory_free_mb is not None]
    if not known or len(known) < len(gpus):
        return None
    return min(known) if one_copy_each else sum(known)
