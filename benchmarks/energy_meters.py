"""The real meters in real time on a scripted board: NVML, Zeus and CodeCarbon against the truth.

The real bindings, the real Zeus and the real CodeCarbon read a library that plays a power waveform; every window's true
energy is known. What Zeus and CodeCarbon measure is their own; the sampler beside Zeus gives the integral.

    python -m benchmarks.energy_meters [--quick] [--check] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.report import Figure, render
from tests.nvml.scripted import ScriptedGpu, ScriptedNvml
from tests.nvml.virtual import Counter
from tests.nvml.waveform import Waveform, constant, square

from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.select import BackendName, select_energy_backend
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement, MeterOptions
from llenergymeasure.core.host.host import Host
from llenergymeasure.domain.energy import comparative_half_width

METERS: tuple[BackendName, ...] = ("nvml", "zeus", "codecarbon")
LENGTHS_S, QUICK_LENGTHS_S = (0.63, 2.27, 5.18, 12.35), (0.63,)
TITLE = "Meters against the truth (real time, scripted NVML)"
LOADS: dict[str, Waveform] = {"steady 300 W": constant(300.0), "square 120/500 W, 0.7 s": square(120.0, 500.0, 0.7)}


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one meter beside the truth, in joules."""

    meter: str
    load: str
    length_s: float
    true_j: float
    measured: EnergyMeasurement

    @property
    def error_pct(self) -> float:
        if self.measured.total_j is None:
            raise RuntimeError(f"{self.meter} gave no energy: {'; '.join(map(str, self.measured.notes))}")
        return 100.0 * (self.measured.total_j / self.true_j - 1.0)

    @property
    def stated_pct(self) -> float | None:
        if not self.measured.components:
            return None
        return 100.0 * comparative_half_width(self.measured.components) / self.true_j

    @property
    def covers(self) -> bool:
        return self.stated_pct is not None and abs(self.error_pct) <= self.stated_pct


def measure(lengths_s: tuple[float, ...]) -> Iterator[Window]:
    """Open windows of each length with each meter on each load."""
    draw = random.Random(7)
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as scratch:
        pretend_nvidia_smi(Path(scratch))
        for load, waveform in LOADS.items():
            gpu = _board(waveform, draw)
            with ScriptedNvml([gpu], Path(scratch)):
                for name in METERS:
                    meter = select_energy_backend(name, (gpu.uuid,), MeterOptions(), Host(clock=clock))
                    for length_s in lengths_s:
                        time.sleep(draw.uniform(0.0, 0.1))
                        yield _window(meter, gpu, load, length_s)


def _board(waveform: Waveform, draw: random.Random) -> ScriptedGpu:
    return ScriptedGpu.of("hopper", waveform=waveform, counter=Counter(phase_s=draw.uniform(0.0, 0.1)))


def _window(meter: EnergyBackend, gpu: ScriptedGpu, load: str, length_s: float) -> Window:
    handle = meter.start_tracking()
    time.sleep(length_s)
    measured = meter.stop_tracking(handle)
    true_j = gpu.energy_between_j(measured.start_s, measured.end_s)
    if measured.telemetry is not None:
        measured.telemetry.close()
    return Window(meter.name, load, length_s, true_j, measured)


def pretend_nvidia_smi(directory: Path) -> None:
    """CodeCarbon looks for NVML only where a program of this name succeeds."""
    program = directory / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    program.chmod(0o755)
    os.environ["PATH"] = f"{directory}{os.pathsep}{os.environ['PATH']}"


def table(windows: list[Window]) -> str:
    """The windows as a Markdown table."""
    lines = [
        "| meter | load | window (s) | true (J) | measured (J) | error (%) | states (%) | holds the truth "
        "| counter (J) | integral (J) |",
        "|---|---|" + "--:|" * 8,
    ]
    for w in windows:
        stated = "–" if w.stated_pct is None else f"{w.stated_pct:.2f}"
        others = ["–" if value is None else f"{value:.2f}" for value in (w.measured.counter_j, w.measured.integral_j)]
        lines.append(
            f"| {w.meter} | {w.load} | {w.length_s:g} | {w.true_j:.2f} | {w.measured.total_j:.2f} "
            f"| {w.error_pct:+.3f} | {stated} | {'yes' if w.covers else 'no'} | {others[0]} | {others[1]} |"
        )
    return "\n".join(lines)


def page(windows: list[Window], found: list[Figure]) -> str:
    """Claims and table as a page of the documentation."""
    claims = [f"| {f.name} | {f.value:.3f} {f.unit} | {f.target:g} {f.unit} | {f.note} |" for f in found if f.target]
    parts = [
        "# Meters in real time",
        "Written by `python -m benchmarks.energy_meters --markdown`: one scripted board of Hopper's kind (a sensor "
        "that sees 25 of every 100 ms, samples of the driver every 20 ms, a counter that moves every 0.1 s), read by "
        f"the real nvidia-ml-py, Zeus {version('zeus')} and CodeCarbon {version('codecarbon')}. *States*: half-width "
        "of the stated 95 % interval, "
        "without the sensor's gain. *Counter*: plain difference of the counter; for `nvml`, read on a step before the "
        "window and right after it. *Integral*: of the power samples taken beside it.",
        "\n".join(["| claim | found | at most | |", "|---|--:|--:|---|", *claims]),
        table(windows),
    ]
    return "\n\n".join(parts) + "\n"


def figures(windows: list[Window]) -> list[Figure]:
    """The largest error of each meter, and how often ours stated too little."""
    found = []
    for meter in METERS:
        long = [abs(w.error_pct) for w in windows if w.meter == meter and w.length_s >= 10.0]
        if long:
            found.append(Figure(f"{meter}: error, windows of 10 s and more", max(long), "%", 1.0))
    own = [w for w in windows if w.meter == "nvml"]
    missed = 100.0 * sum(not w.covers for w in own) / len(own)
    found.append(Figure("nvml: intervals without the truth", missed, "%", 5.0, f"{len(own)} windows"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--quick", action="store_true", help="one short window per meter and load")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    windows = list(measure(QUICK_LENGTHS_S if arguments.quick else LENGTHS_S))
    found = figures(windows)
    print(table(windows), render(TITLE, found), sep="\n\n")
    if arguments.markdown:
        arguments.markdown.write_text(page(windows, found), encoding="utf-8")
    return int(arguments.check and any(figure.misses for figure in found))


if __name__ == "__main__":
    sys.exit(main())
