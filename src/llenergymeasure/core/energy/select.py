"""Which meter measures: exactly one owns a run's energy.

On GPUs `auto` takes the first that works of Zeus, NVML, CodeCarbon; on the CPU, of RAPL and CodeCarbon. "Works" means
that it has just given a reading for these very devices. A meter asked for by name is used or refused, never replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from llenergymeasure.core.energy.codecarbon import CodeCarbonBackend, codecarbon_gpu_backend
from llenergymeasure.core.energy.host_energy import WithHostEnergy
from llenergymeasure.core.energy.nvml import NVMLBackend
from llenergymeasure.core.energy.off import NoEnergyBackend
from llenergymeasure.core.energy.proof import Meter
from llenergymeasure.core.energy.rapl import RaplBackend
from llenergymeasure.core.energy.types import EnergyBackend, MeterOptions
from llenergymeasure.core.energy.zeus import zeus_backend
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.core.host.host import Host
from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)

BackendName = Literal["auto", "nvml", "zeus", "codecarbon", "rapl"]

GPU_PRIORITY: Final = ("zeus", "nvml", "codecarbon")
CPU_PRIORITY: Final = ("rapl", "codecarbon")


def select_energy_backend(
    name: BackendName,
    devices: Sequence[DeviceId],
    options: MeterOptions | None = None,
    host: Host | None = None,
) -> EnergyBackend:
    """The meter for a run on `devices`.

    Args:
        name: Which one, or `auto`.
        devices: UUIDs of the GPUs that the run uses, or `("cpu",)`.
        options: How meters work on this machine; by default as when the user configures nothing.
        host: The machine; its clock is shared with the engine.

    Returns:
        The meter asked for; for `auto` the best that works, or one that measures nothing and warns why.

    Raises:
        EnergyError: The meter asked for by name is missing, has no reading for these devices, or does not measure
            such devices at all.
    """
    host = host or Host()
    workshop = _Workshop(tuple(devices), options or MeterOptions(), host)
    if name != "auto":
        return _named(name, workshop)
    refusals = []
    for candidate in workshop.priority:
        meter = _proven_or_reason(candidate, workshop)
        if not isinstance(meter, EnergyError):
            return meter
        refusals.append(f"{candidate}: {meter}")
    return NoEnergyBackend(host.clock, reason="no energy backend works here (" + "; ".join(refusals) + ")")


def _proven_or_reason(name: str, workshop: _Workshop) -> Meter | EnergyError:
    try:
        meter = workshop.build(name)
        meter.prove()
    except EnergyError as error:
        logger.info("The %s energy backend is not available: %s", name, error)
        return error
    return meter


def _named(name: BackendName, workshop: _Workshop) -> EnergyBackend:
    if name not in workshop.priority:
        measured = "GPUs" if workshop.on_cpu else "the CPU"
        used = "the CPU" if workshop.on_cpu else "GPUs"
        raise EnergyError(
            f"energy.backend: {name} measures {measured}, and this run uses {used}. "
            f"Use one of {', '.join(workshop.priority)}, or auto."
        )
    meter = _proven_or_reason(name, workshop)
    if isinstance(meter, EnergyError):
        raise EnergyError(f"energy.backend: {name} does not work here: {meter}") from meter
    return meter


class _Workshop:
    """Builds meters for one device set."""

    def __init__(self, devices: tuple[DeviceId, ...], options: MeterOptions, host: Host) -> None:
        self._devices = devices
        self._clock = host.clock
        self._options = options
        self._host = host
        self.on_cpu = devices == (CPU_DEVICE,)
        self.priority: tuple[str, ...] = CPU_PRIORITY if self.on_cpu else GPU_PRIORITY

    def build(self, name: str) -> Meter:
        """The meter called `name`, not yet proven.

        Raises:
            EnergyError: Something it needs is missing.
        """
        builders: dict[str, Callable[[], Meter]] = {
            "zeus": self._zeus,
            "nvml": self._nvml,
            "codecarbon": self._codecarbon,
            "rapl": self._rapl,
        }
        return builders[name]()

    def _zeus(self) -> Meter:
        nvml = self._host.open_driver()
        return self._with_host_energy(zeus_backend(self._devices, nvml, self._clock, self._options))

    def _nvml(self) -> Meter:
        nvml = self._host.open_driver()
        return self._with_host_energy(NVMLBackend(self._devices, nvml, self._clock, self._options))

    def _with_host_energy(self, meter: Meter) -> Meter:
        """The same meter, with CPU and memory energy beside it where this machine lets its counters be read."""
        if RaplBackend(self._clock, self._options, self._host.powercap_root).is_available():
            return WithHostEnergy(meter, self._clock, self._host.powercap_root)
        return meter

    def _rapl(self) -> Meter:
        return RaplBackend(self._clock, self._options, self._host.powercap_root)

    def _codecarbon(self) -> Meter:
        if self.on_cpu:
            return CodeCarbonBackend(self._clock)
        return codecarbon_gpu_backend(self._devices, self._host.open_driver(), self._clock, self._options)


@dataclass(frozen=True, slots=True)
class BackendReading:
    """Whether an energy backend works here, with the reading that proves it.

    Args:
        name: The name a config uses.
        available: Whether it just gave a reading.
        text: The reading, or the reason why there is none.
    """

    name: str
    available: bool
    text: str


def describe_energy_backends(devices: Sequence[DeviceId], options: MeterOptions, host: Host) -> list[BackendReading]:
    """Every energy backend of this machine with its reading as proof, best first.

    Args:
        devices: UUIDs of the GPUs to read; empty where there are none.
    """
    described: list[BackendReading] = []
    for measured in ((tuple(devices),) if devices else ()) + ((CPU_DEVICE,),):
        workshop = _Workshop(measured, options, host)
        for name in workshop.priority:
            if name not in {reading.name for reading in described}:
                described.append(_describe(name, workshop))
    return described


def _describe(name: str, workshop: _Workshop) -> BackendReading:
    try:
        return BackendReading(name, True, workshop.build(name).prove())
    except EnergyError as error:
        return BackendReading(name, False, str(error))
