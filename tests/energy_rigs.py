"""Scripted hardware under every energy backend, with the truth beside what each measured."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.nvml.scripted import NVML_GPU_IS_LOST, Counter, ScriptedGpu, ScriptedNvml, fault_of
from tests.nvml.waveform import Waveform, constant, square

from energy_fakes import PowercapTree
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.select import select_energy_backend
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.driver import CPU_DEVICE
from llenergymeasure.core.host.host import Host

CHILD = Path(__file__).parent / "integration" / "energy_child.py"


UNSHOWN_J = 2e-6
"""What two readings of a counter of whole microjoules leave away."""


@dataclass(frozen=True)
class RigWindow:
    """One window, as measured and in truth."""

    asked_s: float
    stop_asked_s: float
    returned_s: float
    energy: EnergyMeasurement
    samples: dict[str, tuple[array[float], array[float]]]
    """Times in seconds and power in watts, by device."""

    true_j: float
    least_j: float
    most_j: float
    """What it may be instead, for a counter that moves in steps."""


@dataclass(frozen=True)
class RigRun:
    """What a backend did on its rig."""

    name: str
    available: bool
    threads_left: int
    device: str
    windows: tuple[RigWindow, ...]


def run_on_gpus(
    backend: str,
    directory: Path,
    lengths_s: Sequence[float],
    *,
    waveform: Waveform | None = None,
    visible: str | None = None,
    lost: bool = False,
) -> tuple[RigRun, ScriptedNvml]:
    """Measure on the second of two scripted boards, of which the first may be lost."""
    used = ScriptedGpu.of(
        "hopper", waveform=waveform or square(200.0, 400.0, 0.7), counter=Counter(0.1, phase_s=0.037), name="H"
    )
    faults = (fault_of("nvmlDeviceGetHandleByIndex_v2", NVML_GPU_IS_LOST),) if lost else ()
    other = ScriptedGpu.of("hopper", waveform=constant(650.0), name="H", faults=faults)
    nvml = ScriptedNvml([other, used], directory)
    (directory / "nvidia-smi").write_text("#!/bin/sh\nexit 0\n")  # CodeCarbon asks whether there is one
    (directory / "nvidia-smi").chmod(0o755)
    environment = {**os.environ, **nvml.environment()}
    environment["PATH"] = f"{directory}:{environment['PATH']}"
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    out = directory / "seen.pickle"
    command = [sys.executable, str(CHILD), str(out), backend, used.uuid, *map(str, lengths_s)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"{backend} failed:\n{done.stdout}\n{done.stderr}")
    seen = pickle.loads(out.read_bytes())
    edge_j = 2 * 0.1 * 400.0  # what one unread update at each edge can be worth
    windows = []
    for window in seen["windows"]:
        true_j = used.energy_between_j(window[3].start_s, window[3].end_s)
        windows.append(RigWindow(*window, true_j, least_j=true_j - edge_j, most_j=true_j + edge_j))
    return RigRun(seen["name"], seen["available"], seen["threads_left"], used.uuid, tuple(windows)), nvml


def run_on_rapl(directory: Path, lengths_s: Sequence[float]) -> RigRun:
    """Measure a made-up processor that draws 80 W and whose counter wraps every second and a quarter.

    The truth is what the counter has shown: on a busy machine its player may be late, and catches up. It is read some
    time before the window opens and after it closes. What was shown when is looked at after the player's end, since it
    may be held up between showing a value and noting it.
    """
    tree = PowercapTree(directory / "sys/class/powercap")
    package = tree.zone("intel-rapl:0", "package-0", range_j=100.0)
    (package / "constraint_0_power_limit_uw").write_text("100000000\n")  # a counter this small could wrap unseen else
    tree.zone("intel-rapl:1", "psys", joules=5.0)
    power_w, stop, began_s = 80.0, threading.Event(), time.monotonic()
    shown = [(began_s, began_s, 0.0)]

    def play() -> None:
        while not stop.wait(0.002):
            joules = power_w * ((now_s := time.monotonic()) - began_s)
            tree.set(package, joules % 100.0)
            shown.append((now_s, time.monotonic(), joules))

    def shown_j(at_s: float) -> float:
        """What it showed at a time for certain."""
        return max(joules for _, set_s, joules in shown if set_s <= at_s)

    def showable_j(at_s: float) -> float:
        """The most that it may have shown by then."""
        return max(joules for asked_s, _, joules in shown if asked_s <= at_s)

    player = threading.Thread(target=play)
    player.start()
    try:
        clock = SystemClock()
        meter = select_energy_backend("rapl", [CPU_DEVICE], MeterOptions(), Host(root=directory, clock=clock))
        threads_before, seen = threading.active_count(), []
        for length_s in lengths_s:
            asked_s = clock.now()
            handle = meter.start_tracking()
            clock.sleep(length_s)
            stop_asked_s = clock.now()
            energy = meter.stop_tracking(handle)
            samples = {} if energy.telemetry is None else {CPU_DEVICE: energy.telemetry.power(CPU_DEVICE)}
            seen.append((asked_s, stop_asked_s, clock.now(), energy, samples))
        left, available = threading.active_count() - threads_before, meter.is_available()
    finally:
        stop.set()
        player.join()
    windows = []
    for asked_s, stop_asked_s, returned_s, energy, samples in seen:
        true_j = shown_j(energy.end_s) - shown_j(energy.start_s)
        least_j = shown_j(energy.end_s) - showable_j(energy.start_s) - UNSHOWN_J
        most_j = showable_j(returned_s) - shown_j(asked_s) + UNSHOWN_J
        windows.append(RigWindow(asked_s, stop_asked_s, returned_s, energy, samples, true_j, least_j, most_j))
    return RigRun(meter.name, available, left, CPU_DEVICE, tuple(windows))
