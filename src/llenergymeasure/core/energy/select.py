"""Which meter measures: exactly one owns a run's energy.

`auto` takes the first that works, which means: that has just given a reading for these very devices. A meter asked for
by name is used or refused, never replaced; one of another package is only ever asked for by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from llenergymeasure.config.meters import registered_meters
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.external import external_strategy, taken_names
from llenergymeasure.core.energy.meter import Meter, NoEnergyBackend, Strategy
from llenergymeasure.core.energy.packages import CodeCarbonEstimate, CodeCarbonStrategy, ZeusStrategy
from llenergymeasure.core.energy.rapl import RaplStrategy
from llenergymeasure.core.energy.strategies import CounterStrategy
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId, Gpu, find_gpus
from llenergymeasure.core.host.host import Capability, Host
from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)

BackendName = str
"""`auto`, or the name of a meter: `config.meters` says which there are."""


def _rapl(host: Host, options: MeterOptions) -> Strategy:
    return RaplStrategy(host.clock, options, host.powercap_root)


GPU_METERS: Final[Mapping[str, Callable[[Sequence[Gpu], Clock, MeterOptions], Strategy]]] = {
    "zeus": ZeusStrategy,
    "nvml": CounterStrategy,
    "codecarbon": CodeCarbonStrategy,
}
"""What measures GPUs, best first."""

CPU_METERS: Final[Mapping[str, Callable[[Host, MeterOptions], Strategy]]] = {
    "rapl": _rapl,
    "codecarbon": lambda host, options: CodeCarbonEstimate(),
}
"""What measures a run on the CPU, best first."""

GPU_PRIORITY: Final = tuple(GPU_METERS)
CPU_PRIORITY: Final = tuple(CPU_METERS)


def select_energy_backend(
    name: BackendName,
    devices: Sequence[DeviceId],
    options: MeterOptions | None = None,
    host: Host | None = None,
) -> Meter | NoEnergyBackend:
    """The meter for a run on `devices`.

    Args:
        devices: UUIDs of the GPUs that the run uses, or `("cpu",)`.
        options: By default as when the user configures nothing.

    Returns:
        The meter asked for; for `auto` the best that works, or one that measures nothing and warns why.

    Raises:
        EnergyError: The meter asked for by name is missing, has no reading for these devices, or does not measure
            such devices at all.
    """
    host, options, candidates = host or Host(), options or MeterOptions(), _candidates(devices)
    if name in registered_meters():
        candidates = (name,)
    if name not in ("auto", *candidates):
        measured, used = ("GPUs", "the CPU") if _on_cpu(devices) else ("the CPU", "GPUs")
        raise EnergyError(
            f"energy.backend: {name} measures {measured}, and this run uses {used}. "
            f"Use one of {', '.join(candidates)}, or auto."
        )
    refusals = []
    for candidate in candidates if name == "auto" else (name,):
        try:
            meter = _build(candidate, devices, options, host)
            meter.prove()
        except EnergyError as error:
            logger.info("The %s energy backend is not available: %s", candidate, error)
            if candidate == name:
                raise EnergyError(f"energy.backend: {name} does not work here: {error}") from error
            refusals.append(f"{candidate}: {error}")
        else:
            return meter
    return NoEnergyBackend(host.clock, reason="no energy backend works here (" + "; ".join(refusals) + ")")


def _on_cpu(devices: Sequence[DeviceId]) -> bool:
    return tuple(devices) == (CPU_DEVICE,)


def _candidates(devices: Sequence[DeviceId]) -> tuple[str, ...]:
    return CPU_PRIORITY if _on_cpu(devices) else GPU_PRIORITY


def _build(name: str, devices: Sequence[DeviceId], options: MeterOptions, host: Host) -> Meter:
    """The meter called `name`, not yet proven; ours of GPUs reads the host's counters too where it may."""
    if name in registered_meters():
        strategy: Strategy = external_strategy(name, devices, host.clock, options, known_gpus(devices, host))
    elif _on_cpu(devices):
        strategy = CPU_METERS[name](host, options)
    else:
        strategy = GPU_METERS[name](find_gpus(devices, host.open_driver()), host.clock, options)
    beside = not strategy.tells_host and Meter(_rapl(host, options), host.clock, options).is_available()
    return Meter(strategy, host.clock, options, host.powercap_root if beside else None)


def known_gpus(devices: Sequence[DeviceId], host: Host) -> tuple[Gpu, ...]:
    """The GPUs of a run; none where it uses none, or NVML does not know them all."""
    if not devices or _on_cpu(devices):
        return ()
    try:
        return find_gpus(devices, host.open_driver())
    except EnergyError as error:
        logger.info("NVML does not describe the GPUs: %s", error)
        return ()


def describe_energy_backends(devices: Sequence[DeviceId], options: MeterOptions, host: Host) -> list[Capability]:
    """Every energy backend of this machine with its reading as proof, best first; then those of other packages.

    Args:
        devices: UUIDs of the GPUs to read; empty where there are none.
    """
    described: dict[str, Capability] = {}
    for measured in ((tuple(devices),) if devices else ()) + ((CPU_DEVICE,),):
        for name in _candidates(measured):
            if name not in described:
                described[name] = _describe(name, measured, options, host)
    run_on = tuple(devices) or (CPU_DEVICE,)
    others = [_describe(name, run_on, options, host) for name in registered_meters()]
    in_vain = [
        Capability(f"{name} ({package})", False, "the name is this package's own, so that it is never used; rename it")
        for name, package in taken_names()
    ]
    return [*described.values(), *others, *in_vain]


def _describe(name: str, devices: Sequence[DeviceId], options: MeterOptions, host: Host) -> Capability:
    try:
        return Capability(name, True, _build(name, devices, options, host).prove())
    except EnergyError as error:
        return Capability(name, False, str(error))
