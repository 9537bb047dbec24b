"""NVML with types, units and one exception class per kind of failure.

`Nvml` is the role; `open_nvml` gives the real one, a thin layer over NVIDIA's own binding (`pynvml`, from the package
`nvidia-ml-py`). Every call returns a value in watts, joules, MHz or MB, or raises an `NvmlError`; a reading that NVML
marks as unavailable is an error too, never a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import pynvml

from llenergymeasure.exceptions import EnergyError

NvmlHandle = Any
"""An opaque device handle, good for as long as NVML is initialised."""

PowerScope = Literal["gpu", "module"]
"""What a power reading includes. On Grace Hopper the module scope holds the CPU as well."""

MB: Final = 1_000_000
"""Bytes per MB."""

POWER_INSTANT_FIELD: Final = 186
"""`NVML_FI_DEV_POWER_INSTANT`: power over the sensor's own short window (25 to 100 ms)."""

UNAVAILABLE_U32: Final = 0xFFFFFFFF
"""What NVML writes where it has no value."""


class NvmlError(EnergyError):
    """NVML could not answer."""


class NvmlLibraryMissingError(NvmlError):
    """There is no NVIDIA driver on this machine, or it is not loaded."""


class NvmlNotSupportedError(NvmlError):
    """This device or driver has no such reading."""


class NvmlPermissionDeniedError(NvmlError):
    """The reading exists, and this user may not have it."""


class NvmlDeviceNotFoundError(NvmlError):
    """No device has this UUID or index."""


class NvmlGpuLostError(NvmlError):
    """The GPU fell off the bus or needs a reset."""


class NvmlInvalidReadingError(NvmlError):
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


class Nvml(Protocol):
    """What this package asks of NVML."""

    def driver_version(self) -> str:
        """Driver version, e.g. `570.86.15`."""

    def device_handles(self) -> tuple[NvmlHandle, ...]:
        """All boards in order of PCI bus address, which is NVML's order."""

    def handle_by_uuid(self, uuid: str) -> NvmlHandle:
        """The board or MIG instance with this full UUID."""

    def uuid(self, handle: NvmlHandle) -> str:
        """`GPU-…` or `MIG-…`."""

    def name(self, handle: NvmlHandle) -> str:
        """Marketing name, e.g. `NVIDIA H100 80GB HBM3`."""

    def mig_handles(self, handle: NvmlHandle) -> tuple[NvmlHandle, ...]:
        """MIG instances of a board; empty where MIG is off or unknown to it."""

    def mig_parent(self, handle: NvmlHandle) -> NvmlHandle:
        """The board that a MIG instance is a slice of."""

    def power_instant(self, handle: NvmlHandle) -> PowerReading:
        """Power over the sensor's own window (field 186)."""

    def power_usage_w(self, handle: NvmlHandle) -> float:
        """Power in watts by `nvmlDeviceGetPowerUsage`: a one-second average on most boards since Ampere."""

    def total_energy_j(self, handle: NvmlHandle) -> float:
        """Joules since the driver was loaded (Volta and later)."""

    def power_limit_w(self, handle: NvmlHandle) -> float:
        """The enforced power limit in watts."""

    def default_power_limit_w(self, handle: NvmlHandle) -> float:
        """The factory power limit in watts."""

    def temperature_c(self, handle: NvmlHandle) -> float:
        """GPU temperature in degrees Celsius."""

    def sm_clock_mhz(self, handle: NvmlHandle) -> float:
        """Streaming-multiprocessor clock in MHz."""

    def memory_clock_mhz(self, handle: NvmlHandle) -> float:
        """Memory clock in MHz."""

    def sm_utilisation_pct(self, handle: NvmlHandle) -> float:
        """Share of the driver's last sample period in which a kernel ran, 0..100."""

    def max_sm_clock_mhz(self, handle: NvmlHandle) -> float:
        """Highest streaming-multiprocessor clock in MHz."""

    def fan_speed_pct(self, handle: NvmlHandle) -> float:
        """Fan speed in per cent of its maximum."""

    def memory_used_mb(self, handle: NvmlHandle) -> float:
        """Device memory in use, in MB."""

    def memory_free_mb(self, handle: NvmlHandle) -> float:
        """Device memory that nobody uses, in MB."""

    def memory_total_mb(self, handle: NvmlHandle) -> float:
        """Device memory in all, in MB."""

    def compute_capability(self, handle: NvmlHandle) -> str:
        """CUDA compute capability, e.g. `9.0`."""

    def pcie_generation(self, handle: NvmlHandle) -> int:
        """PCIe generation of the current link."""

    def mig_enabled(self, handle: NvmlHandle) -> bool:
        """Whether a board is cut into MIG instances."""

    def throttle_reasons(self, handle: NvmlHandle) -> int:
        """The clocks-event-reasons bit mask."""

    def compute_pids(self, handle: NvmlHandle) -> tuple[int, ...]:
        """Process ids, in the driver's view, that hold a compute context on the device."""

    def persistence_mode(self, handle: NvmlHandle) -> bool:
        """Whether the driver stays loaded while nobody uses the device."""

    def energy_includes_module(self, handle: NvmlHandle) -> bool:
        """Whether the energy counter covers a whole superchip (Grace Hopper), its CPU included."""


def open_nvml() -> Nvml:
    """The machine's NVML. Safe to call from any thread, any number of times: NVML counts its users.

    Raises:
        NvmlLibraryMissingError: No NVIDIA driver here.
        NvmlError: It is there and does not start.
    """
    _call("NVML itself", pynvml.nvmlInit)
    return _PynvmlBinding()


class _PynvmlBinding:
    """`Nvml` on NVIDIA's own Python binding; get one from `open_nvml`."""

    def driver_version(self) -> str:
        return str(_call("the driver version", pynvml.nvmlSystemGetDriverVersion))

    def device_handles(self) -> tuple[NvmlHandle, ...]:
        count = _call("the number of GPUs", pynvml.nvmlDeviceGetCount)
        return tuple(_call(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(count))

    def handle_by_uuid(self, uuid: str) -> NvmlHandle:
        return _call(f"the device {uuid}", pynvml.nvmlDeviceGetHandleByUUID, uuid)

    def uuid(self, handle: NvmlHandle) -> str:
        return str(_call("a GPU's UUID", pynvml.nvmlDeviceGetUUID, handle))

    def name(self, handle: NvmlHandle) -> str:
        return str(_call("a GPU's name", pynvml.nvmlDeviceGetName, handle))

    def mig_handles(self, handle: NvmlHandle) -> tuple[NvmlHandle, ...]:
        try:
            if not self.mig_enabled(handle):
                return ()
            slots = _call("the number of MIG slots", pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)
        except NvmlNotSupportedError:
            return ()
        return tuple(_occupied_mig_slots(handle, slots))

    def mig_parent(self, handle: NvmlHandle) -> NvmlHandle:
        return _call("a MIG instance's board", pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)

    def power_instant(self, handle: NvmlHandle) -> PowerReading:
        (field,) = _call("instantaneous power", pynvml.nvmlDeviceGetFieldValues, handle, [POWER_INSTANT_FIELD])
        if field.nvmlReturn != pynvml.NVML_SUCCESS:
            raise _typed("instantaneous power", pynvml.NVMLError(field.nvmlReturn))
        milliwatts = _valid_u32("instantaneous power", field.value.uiVal)
        wall_time_s = field.timestamp / 1e6 if field.timestamp > 0 else None
        return PowerReading(milliwatts / 1000, wall_time_s, "module" if field.scopeId == 1 else "gpu")

    def power_usage_w(self, handle: NvmlHandle) -> float:
        return _valid_u32("power", _call("power", pynvml.nvmlDeviceGetPowerUsage, handle)) / 1000

    def total_energy_j(self, handle: NvmlHandle) -> float:
        millijoules: int = _call("the energy counter", pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        if millijoules >= 0xFFFFFFFFFFFFFFFF:
            raise NvmlInvalidReadingError("NVML gave no value for the energy counter")
        return millijoules / 1000

    def power_limit_w(self, handle: NvmlHandle) -> float:
        return (
            _valid_u32("the power limit", _call("the power limit", pynvml.nvmlDeviceGetEnforcedPowerLimit, handle))
            / 1000
        )

    def default_power_limit_w(self, handle: NvmlHandle) -> float:
        what = "the default power limit"
        return _valid_u32(what, _call(what, pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)) / 1000

    def temperature_c(self, handle: NvmlHandle) -> float:
        return float(_call("temperature", pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU))

    def sm_clock_mhz(self, handle: NvmlHandle) -> float:
        return float(_call("the SM clock", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM))

    def memory_clock_mhz(self, handle: NvmlHandle) -> float:
        return float(_call("the memory clock", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM))

    def sm_utilisation_pct(self, handle: NvmlHandle) -> float:
        return float(_call("utilisation", pynvml.nvmlDeviceGetUtilizationRates, handle).gpu)

    def max_sm_clock_mhz(self, handle: NvmlHandle) -> float:
        return float(_call("the highest SM clock", pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM))

    def fan_speed_pct(self, handle: NvmlHandle) -> float:
        return float(_call("fan speed", pynvml.nvmlDeviceGetFanSpeed, handle))

    def memory_used_mb(self, handle: NvmlHandle) -> float:
        return float(_call("memory use", pynvml.nvmlDeviceGetMemoryInfo, handle).used) / MB

    def memory_free_mb(self, handle: NvmlHandle) -> float:
        return float(_call("free memory", pynvml.nvmlDeviceGetMemoryInfo, handle).free) / MB

    def memory_total_mb(self, handle: NvmlHandle) -> float:
        return float(_call("memory size", pynvml.nvmlDeviceGetMemoryInfo, handle).total) / MB

    def compute_capability(self, handle: NvmlHandle) -> str:
        major, minor = _call("compute capability", pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        return f"{major}.{minor}"

    def pcie_generation(self, handle: NvmlHandle) -> int:
        return int(_call("the PCIe link", pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle))

    def mig_enabled(self, handle: NvmlHandle) -> bool:
        current, _pending = _call("the MIG mode", pynvml.nvmlDeviceGetMigMode, handle)
        return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)

    def throttle_reasons(self, handle: NvmlHandle) -> int:
        try:
            return int(_call("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle))
        except NvmlNotSupportedError:  # drivers before 535 know it by its older name
            return int(_call("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle))

    def compute_pids(self, handle: NvmlHandle) -> tuple[int, ...]:
        return tuple(p.pid for p in _call("processes", pynvml.nvmlDeviceGetComputeRunningProcesses, handle))

    def persistence_mode(self, handle: NvmlHandle) -> bool:
        mode = _call("persistence mode", pynvml.nvmlDeviceGetPersistenceMode, handle)
        return bool(mode == pynvml.NVML_FEATURE_ENABLED)

    def energy_includes_module(self, handle: NvmlHandle) -> bool:
        try:
            return bool(_call("the chip-to-chip link", pynvml.nvmlDeviceGetC2cModeInfoV, handle).isC2cEnabled)
        except NvmlNotSupportedError:
            return False


def _occupied_mig_slots(handle: NvmlHandle, slots: int) -> Iterator[NvmlHandle]:
    for slot in range(slots):
        with suppress(NvmlDeviceNotFoundError):
            yield _call(f"MIG slot {slot}", pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)


def _call(what: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except pynvml.NVMLError as error:
        raise _typed(what, error) from error


def _valid_u32(what: str, value: int) -> int:
    if value == UNAVAILABLE_U32:
        raise NvmlInvalidReadingError(f"NVML gave no value for {what}")
    return value


def _typed(what: str, error: Any) -> NvmlError:
    """The `NvmlError` for one of the binding's own exceptions."""
    kind = _ERROR_KINDS.get(error.value, NvmlError)
    return kind(f"reading {what} failed: {error}")


_ERROR_KINDS: Final[dict[int, type[NvmlError]]] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NvmlLibraryMissingError,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NvmlLibraryMissingError,
    pynvml.NVML_ERROR_NOT_SUPPORTED: NvmlNotSupportedError,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: NvmlNotSupportedError,
    pynvml.NVML_ERROR_NO_PERMISSION: NvmlPermissionDeniedError,
    pynvml.NVML_ERROR_NOT_FOUND: NvmlDeviceNotFoundError,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: NvmlDeviceNotFoundError,
    pynvml.NVML_ERROR_GPU_IS_LOST: NvmlGpuLostError,
    pynvml.NVML_ERROR_RESET_REQUIRED: NvmlGpuLostError,
}
