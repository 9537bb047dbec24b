"""NVIDIA's boards: `GpuDriver` on NVIDIA's own binding of NVML (`pynvml`, from the package `nvidia-ml-py`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import pynvml

from llenergymeasure.core.gpu.driver import (
    MB,
    BufferedPower,
    DeviceNotFoundError,
    DriverMissingError,
    GpuDriver,
    GpuDriverError,
    GpuHandle,
    GpuLostError,
    InvalidReadingError,
    NotSupportedError,
    PermissionDeniedError,
    PowerReading,
)

POWER_INSTANT_FIELD: Final = 186
"""`NVML_FI_DEV_POWER_INSTANT`: power over the sensor's own short window (25 to 100 ms)."""

UNAVAILABLE_U32: Final = 0xFFFFFFFF
"""What NVML writes where it has no value."""


def open_nvml() -> GpuDriver:
    """The machine's NVML. Safe to call from any thread, any number of times: NVML counts its users.

    Raises:
        DriverMissingError: No NVIDIA driver here.
        GpuDriverError: It is there and does not start.
    """
    _call("NVML itself", pynvml.nvmlInit)
    return _PynvmlBinding()


class _PynvmlBinding:
    """`GpuDriver` on NVIDIA's own Python binding; get one from `open_nvml`."""

    def driver_version(self) -> str:
        return str(_call("the driver version", pynvml.nvmlSystemGetDriverVersion))

    def device_count(self) -> int:
        return int(_call("the number of GPUs", pynvml.nvmlDeviceGetCount))

    def device_handle(self, index: int) -> GpuHandle:
        return _call(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index)

    def uuid(self, handle: GpuHandle) -> str:
        return str(_call("a GPU's UUID", pynvml.nvmlDeviceGetUUID, handle))

    def name(self, handle: GpuHandle) -> str:
        return str(_call("a GPU's name", pynvml.nvmlDeviceGetName, handle))

    def mig_handles(self, handle: GpuHandle) -> tuple[GpuHandle, ...]:
        try:
            if not self.mig_enabled(handle):
                return ()
            slots = _call("the number of MIG slots", pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)
        except NotSupportedError:
            return ()
        found = []
        for slot in range(slots):
            with suppress(DeviceNotFoundError):  # an empty one
                found.append(_call(f"MIG slot {slot}", pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot))
        return tuple(found)

    def power_instant(self, handle: GpuHandle) -> PowerReading:
        (field,) = _call("instantaneous power", pynvml.nvmlDeviceGetFieldValues, handle, [POWER_INSTANT_FIELD])
        if field.nvmlReturn != pynvml.NVML_SUCCESS:
            raise _typed("instantaneous power", pynvml.NVMLError(field.nvmlReturn))
        milliwatts = _valid_u32("instantaneous power", field.value.uiVal)
        wall_time_s = field.timestamp / 1e6 if field.timestamp > 0 else None
        return PowerReading(milliwatts / 1000, wall_time_s, "module" if field.scopeId == 1 else "gpu")

    def buffered_power(self, handle: GpuHandle, since_us: int) -> tuple[BufferedPower, ...]:
        what = "buffered power"
        try:
            _, found = _call(what, pynvml.nvmlDeviceGetSamples, handle, pynvml.NVML_TOTAL_POWER_SAMPLES, since_us)
        except DeviceNotFoundError:  # nothing newer
            return ()
        # The time that was asked for is among the answers of some drivers.
        newer = (sample for sample in found if sample.timeStamp > since_us)
        return tuple((sample.timeStamp, sample.sampleValue.uiVal / 1000) for sample in newer)

    def power_usage_w(self, handle: GpuHandle) -> float:
        return _valid_u32("power", _call("power", pynvml.nvmlDeviceGetPowerUsage, handle)) / 1000

    def total_energy_j(self, handle: GpuHandle) -> float:
        millijoules: int = _call("the energy counter", pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        if millijoules >= 0xFFFFFFFFFFFFFFFF:
            raise InvalidReadingError("NVML gave no value for the energy counter")
        return millijoules / 1000

    def power_limit_w(self, handle: GpuHandle) -> float:
        what = "the power limit"
        return _valid_u32(what, _call(what, pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)) / 1000

    def default_power_limit_w(self, handle: GpuHandle) -> float:
        what = "the default power limit"
        return _valid_u32(what, _call(what, pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)) / 1000

    def temperature_c(self, handle: GpuHandle) -> float:
        return float(_call("temperature", pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU))

    def sm_clock_mhz(self, handle: GpuHandle) -> float:
        return float(_call("the SM clock", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM))

    def memory_clock_mhz(self, handle: GpuHandle) -> float:
        return float(_call("the memory clock", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM))

    def sm_utilisation_pct(self, handle: GpuHandle) -> float:
        return float(_call("utilisation", pynvml.nvmlDeviceGetUtilizationRates, handle).gpu)

    def max_sm_clock_mhz(self, handle: GpuHandle) -> float:
        return float(_call("the highest SM clock", pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM))

    def fan_speed_pct(self, handle: GpuHandle) -> float:
        return float(_call("fan speed", pynvml.nvmlDeviceGetFanSpeed, handle))

    def memory_used_mb(self, handle: GpuHandle) -> float:
        return float(_call("memory use", pynvml.nvmlDeviceGetMemoryInfo, handle).used) / MB

    def memory_free_mb(self, handle: GpuHandle) -> float:
        return float(_call("free memory", pynvml.nvmlDeviceGetMemoryInfo, handle).free) / MB

    def memory_total_mb(self, handle: GpuHandle) -> float:
        return float(_call("memory size", pynvml.nvmlDeviceGetMemoryInfo, handle).total) / MB

    def compute_capability(self, handle: GpuHandle) -> str:
        major, minor = _call("compute capability", pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        return f"{major}.{minor}"

    def pcie_generation(self, handle: GpuHandle) -> int:
        return int(_call("the PCIe link", pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle))

    def mig_enabled(self, handle: GpuHandle) -> bool:
        current, _pending = _call("the MIG mode", pynvml.nvmlDeviceGetMigMode, handle)
        return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)

    def throttle_reasons(self, handle: GpuHandle) -> int:
        try:
            return int(_call("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle))
        except NotSupportedError:  # drivers before 535 know it by its older name
            return int(_call("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle))

    def compute_pids(self, handle: GpuHandle) -> tuple[int, ...]:
        return tuple(p.pid for p in _call("processes", pynvml.nvmlDeviceGetComputeRunningProcesses, handle))

    def persistence_mode(self, handle: GpuHandle) -> bool:
        mode = _call("persistence mode", pynvml.nvmlDeviceGetPersistenceMode, handle)
        return bool(mode == pynvml.NVML_FEATURE_ENABLED)

    def energy_includes_module(self, handle: GpuHandle) -> bool:
        try:
            return bool(_call("the chip-to-chip link", pynvml.nvmlDeviceGetC2cModeInfoV, handle).isC2cEnabled)
        except NotSupportedError:
            return False


def _call(what: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except pynvml.NVMLError as error:
        raise _typed(what, error) from error


def _valid_u32(what: str, value: int) -> int:
    if value == UNAVAILABLE_U32:
        raise InvalidReadingError(f"NVML gave no value for {what}")
    return value


def _typed(what: str, error: Any) -> GpuDriverError:
    """The `GpuDriverError` for one of the binding's own exceptions."""
    kind = _ERROR_KINDS.get(error.value, GpuDriverError)
    return kind(f"reading {what} failed: {error}")


_ERROR_KINDS: Final[dict[int, type[GpuDriverError]]] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: DriverMissingError,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: DriverMissingError,
    pynvml.NVML_ERROR_NOT_SUPPORTED: NotSupportedError,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: NotSupportedError,
    pynvml.NVML_ERROR_NO_PERMISSION: PermissionDeniedError,
    pynvml.NVML_ERROR_NOT_FOUND: DeviceNotFoundError,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: DeviceNotFoundError,
    pynvml.NVML_ERROR_GPU_IS_LOST: GpuLostError,
    pynvml.NVML_ERROR_RESET_REQUIRED: GpuLostError,
}
