"""A process that measures windows with one energy backend and pickles what it saw; see `energy_rigs`.

python energy_child.py OUT BACKEND DEVICES SECONDS...
"""

from __future__ import annotations

import pickle
import sys
import threading
from dataclasses import replace
from pathlib import Path

from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.select import select_energy_backend
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.host.host import Host


def main(out: Path, name: str, devices: list[str], lengths_s: list[float]) -> None:
    clock = SystemClock()
    meter = select_energy_backend(name, devices, MeterOptions(), Host(clock=clock))  # type: ignore[arg-type]
    threads_before = threading.active_count()
    windows = []
    for length_s in lengths_s:
        asked_s = clock.now()
        handle = meter.start_tracking()
        clock.sleep(length_s)
        stop_asked_s = clock.now()
        energy = meter.stop_tracking(handle)
        samples = {}
        if energy.telemetry is not None:
            samples = {device: energy.telemetry.power(device) for device in energy.telemetry.devices}
            energy.telemetry.close()
        windows.append((asked_s, stop_asked_s, clock.now(), replace(energy, telemetry=None), samples))
    patience_s = clock.now() + 10.0  # a thread that was told to end may need a moment
    while threading.active_count() > threads_before and clock.now() < patience_s:
        clock.sleep(0.01)
    threads_left = threading.active_count() - threads_before  # the proof below may leave one that is about to end
    seen = {"name": meter.name, "available": meter.is_available(), "threads_left": threads_left, "windows": windows}
    out.write_bytes(pickle.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), [float(word) for word in sys.argv[4:]])
