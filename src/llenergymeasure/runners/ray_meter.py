"""The meter of another node of a Ray cluster, at both ends: the actor there, and what an experiment sees of it.

    job's process ── Ray ── NodeMeter (one actor on each further node) ── the node's own meter ── its boards

What crosses is numbers, text, and the window's raw trace as a Parquet file: joules are computed where all traces meet.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypedDict

from llenergymeasure.config.user_config import load_user_config
from llenergymeasure.core.energy.gpu_energy import read_trace, write_trace
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.energy.select import select_energy_backend
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.host.leftovers import leftover_gpu_memory
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError
from llenergymeasure.runners.job import MetersElsewhere
from llenergymeasure.runners.ray_worker import forget_what_ray_set

NAMESPACE: Final = "llenergymeasure"
"""Where Ray keeps the names of meters."""

TRACE_NAME: Final = "trace.parquet"


class Readings(TypedDict):
    """What a meter read in a window.

    Args:
        trace: The raw trace; empty: there are no readings of boards, and the notes say why.
        notes: Codes and texts.
    """

    start_s: float
    end_s: float
    trace: bytes
    notes: list[tuple[str, str]]
    meter: str
    meter_version: str
    cpu_j: float | None
    dram_j: float | None


class NodeMeter:
    """Meters the boards of its node, one window at a time, by the node's own settings."""

    def __init__(self) -> None:
        forget_what_ray_set()
        self._host = Host()
        self._window: tuple[EnergyBackend, TrackingHandle] | None = None
        self._meters: dict[tuple[str | None, tuple[DeviceId, ...]], EnergyBackend] = {}

    def devices(self) -> list[DeviceId]:
        """UUIDs of the GPUs that a program started here would see."""
        return [gpu.uuid for gpu in self._host.visible_gpus()]

    def leftovers(self) -> list[str]:
        """GPU memory that somebody left behind."""
        return list(leftover_gpu_memory())

    def now(self) -> float:
        """What the measurement clock of this node shows."""
        return self._host.clock.now()

    def open(self, devices: Sequence[DeviceId], wanted: str) -> None:
        """Open a window over some boards; one that is open still is given up.

        Args:
            wanted: The experiment's choice of a meter; `auto`: the node's.

        Raises:
            EnergyError: The meter cannot.
        """
        self._give_up()
        meter = self._meter_for(tuple(devices), wanted)
        self._window = meter, meter.start_tracking()

    def close(self) -> Readings:
        """Close it, and tell what was read.

        Raises:
            EnergyError: None is open.
        """
        if self._window is None:
            raise EnergyError("no window is open")
        (meter, handle), self._window = self._window, None
        energy = meter.stop_tracking(handle)
        try:
            return {
                "start_s": energy.start_s,
                "end_s": energy.end_s,
                "trace": _trace_of(energy),
                "notes": [(note.code.value, note.message) for note in energy.notes],
                "meter": energy.meter,
                "meter_version": energy.meter_version,
                "cpu_j": energy.cpu_j,
                "dram_j": energy.dram_j,
            }
        finally:
            energy.close()

    def watch(self) -> None:
        """Never returns: whoever waits for that learns when this actor is gone."""
        threading.Event().wait()

    def _meter_for(self, devices: tuple[DeviceId, ...], wanted: str) -> EnergyBackend:
        machine = load_user_config()
        name = machine.measurement.energy_backend if wanted == "auto" else wanted
        if (name, devices) not in self._meters:
            options = MeterOptions(
                poll_interval_ms=machine.advanced.nvml_poll_interval_ms,
                power_gain_uncertainty_pct=machine.advanced.power_gain_uncertainty_pct,
                calibration_dir=self._host.calibration_dir,
                family_pid=os.getppid(),  # Ray's own, which starts the engine's workers too
            )
            self._meters[name, devices] = (
                NoEnergyBackend(self._host.clock, "the node's settings switch energy off")
                if name is None
                else select_energy_backend(name, devices, options, self._host)
            )
        return self._meters[name, devices]

    def _give_up(self) -> None:
        if self._window is not None:
            (meter, handle), self._window = self._window, None
            meter.stop_tracking(handle).close()


def _trace_of(energy: EnergyMeasurement) -> bytes:
    if energy.gpu_window is None or energy.telemetry is None:
        return b""
    with tempfile.TemporaryDirectory(prefix="llem-") as name:
        return write_trace(energy, Path(name, TRACE_NAME)).read_bytes()


class RayPlace:
    """A `core.energy.several.Place` by the meter of a node.

    Args:
        wanted: See `NodeMeter.open`.
    """

    def __init__(self, ray: ModuleType, node: str, actor: Any, wanted: str) -> None:
        self._ray = ray
        self.node = node
        self._actor = actor
        self._wanted = wanted
        self.devices: tuple[DeviceId, ...] = tuple(self._get(actor.devices.remote()))

    def now(self) -> float:
        """What the node's clock shows."""
        return float(self._get(self._actor.now.remote()))

    def open(self, devices: Sequence[DeviceId]) -> Callable[[], None]:
        """Have a window opened there."""
        answer = self._actor.open.remote(list(devices), self._wanted)
        return lambda: self._get(answer)

    def close(self) -> Callable[[], EnergyMeasurement]:
        """Have it closed, and its trace sent."""
        answer = self._actor.close.remote()
        return lambda: _measurement_of(self._get(answer))

    def _get(self, answer: Any) -> Any:
        """What the meter said.

        Raises:
            EnergyError: It could not do it, or is gone.
        """
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise EnergyError(f"{self.node}: {error.cause}") from error
        except self._ray.exceptions.RayError as error:
            raise EnergyError(f"the meter of {self.node} is gone: {error}") from error


def _measurement_of(said: Readings) -> EnergyMeasurement:
    window = telemetry = None
    if said["trace"]:
        with tempfile.TemporaryDirectory(prefix="llem-") as name:
            path = Path(name, TRACE_NAME)
            path.write_bytes(said["trace"])
            window, telemetry = read_trace(path)
    return EnergyMeasurement(
        said["start_s"],
        said["end_s"],
        gpu_window=window,
        telemetry=telemetry,
        notes=tuple(MeasurementWarning(WarningCode(code), text) for code, text in said["notes"]),
        meter=said["meter"],
        meter_version=said["meter_version"],
        cpu_j=said["cpu_j"],
        dram_j=said["dram_j"],
    )


def places_of(meters: MetersElsewhere, wanted: str) -> list[RayPlace]:
    """The other nodes of a run, for its own process, which becomes one of Ray's for the rest of its life.

    Args:
        wanted: See `NodeMeter.open`.

    Raises:
        EnergyError: A meter cannot be reached.
    """
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(meters.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        actors = {node: ray.get_actor(name) for node, name in meters.actors.items()}
    except Exception as error:  # Ray's own, gRPC's, and the system's
        raise EnergyError(f"the meters of {', '.join(meters.actors)} cannot be reached: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # Ray puts its own there
    return [RayPlace(ray, node, actor, wanted) for node, actor in actors.items()]
