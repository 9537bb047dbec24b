"""Other tools beside this one, in the same run: what a user waits for, and what opening and closing a window takes.

Commands run in turn, round after round, so that a busy neighbour hits all alike. Windows are on a scripted board and
hold a short sleep; each tool measures as its own documentation says. Tools with an environment of their own are named:

    python -m benchmarks.peers [--quick] [--program aiperf=/elsewhere/bin/aiperf] ...
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.energy_meters import pretend_nvidia_smi
from benchmarks.report import Figure, render
from benchmarks.startup import BARE, LLEM, PYTHON, seconds_of
from codecarbon import OfflineEmissionsTracker
from tests.nvml.scripted import ScriptedGpu, ScriptedNvml
from zeus.monitor import ZeusMonitor

from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.select import select_energy_backend
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.host.host import Host

ROUNDS, QUICK_ROUNDS = 7, 1
WINDOWS, QUICK_WINDOWS = 20, 2
WINDOW_S = 0.25

Begin = Callable[[], Callable[[], object]]
"""Opens a window and gives what closes it."""


def start_up(programs: dict[str, str], rounds: int) -> list[Figure]:
    """`--help` of each program and the import of each library, as multiples of a bare Python."""
    commands = {
        BARE: [*PYTHON, "-c", "pass"],
        "llem --help": [*LLEM, "--help"],
        f"codecarbon --help ({version('codecarbon')})": [str(Path(sys.executable).with_name("codecarbon")), "--help"],
        **{f"{name} --help": [program, "--help"] for name, program in programs.items()},
        "import llenergymeasure": [*PYTHON, "-c", "import llenergymeasure"],
        "import codecarbon": [*PYTHON, "-c", "import codecarbon"],
        f"import zeus.monitor ({version('zeus')})": [*PYTHON, "-c", "import zeus.monitor"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():  # once before the clock counts: compiled files, disk cache
        seconds_of(command)
    for _ in range(rounds):
        for name, command in commands.items():
            seconds[name].append(seconds_of(command))
    medians_s = {name: statistics.median(times) for name, times in seconds.items()}
    bare_s = medians_s.pop(BARE)
    return [Figure(name, took / bare_s, "x bare", None, f"{took:.2f} s") for name, took in medians_s.items()]


def windows(count: int) -> list[Figure]:
    """Milliseconds that opening and closing a window takes, the first one by itself in the note."""
    with tempfile.TemporaryDirectory() as scratch:
        pretend_nvidia_smi(Path(scratch))
        gpu = ScriptedGpu.of("hopper")
        with ScriptedNvml([gpu], Path(scratch)):
            meters: dict[str, Begin] = {"llem (nvml)": own(gpu), "zeus": zeus(), "codecarbon": codecarbon(scratch)}
            return [figure for name, begin in meters.items() for figure in timed(name, begin, count)]


def own(gpu: ScriptedGpu) -> Begin:
    meter = select_energy_backend("nvml", (gpu.uuid,), MeterOptions(), Host(clock=SystemClock()))

    def begin() -> Callable[[], object]:
        handle = meter.start_tracking()

        def end() -> None:
            measured = meter.stop_tracking(handle)
            if measured.telemetry is not None:
                measured.telemetry.close()

        return end

    return begin


def zeus() -> Begin:
    monitor = ZeusMonitor(gpu_indices=[0])

    def begin() -> Callable[[], object]:
        monitor.begin_window("empty", sync_execution=False)
        return lambda: monitor.end_window("empty", sync_execution=False)

    return begin


def codecarbon(directory: str) -> Begin:
    def begin() -> Callable[[], object]:
        tracker = OfflineEmissionsTracker(
            country_iso_code="CAN", save_to_file=False, log_level="error", output_dir=directory
        )
        tracker.start()
        return tracker.stop

    return begin


def timed(name: str, begin: Begin, count: int) -> list[Figure]:
    opened_s, closed_s = [], []
    for _ in range(count + 1):
        start = time.perf_counter()
        end = begin()
        opened_s.append(time.perf_counter() - start)
        time.sleep(WINDOW_S)
        start = time.perf_counter()
        end()
        closed_s.append(time.perf_counter() - start)
    note = f"median of {count}; the first {opened_s[0] * 1000:.0f} + {closed_s[0] * 1000:.0f} ms"
    both_s = statistics.median(opened_s[1:]) + statistics.median(closed_s[1:])
    return [
        Figure(f"{name}: opening and closing a window", both_s * 1000, "ms", None, note),
        Figure(f"{name}: closing alone", statistics.median(closed_s[1:]) * 1000, "ms"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Other tools beside this one.")
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it works, not how fast")
    parser.add_argument("--program", action="append", default=[], metavar="NAME=PATH", help="one more --help to time")
    given = parser.parse_args(arguments)
    programs = dict(text.split("=", 1) for text in given.program)
    print(render("Start-up", start_up(programs, QUICK_ROUNDS if given.quick else ROUNDS)))
    with contextlib.redirect_stdout(io.StringIO()):
        found = windows(QUICK_WINDOWS if given.quick else WINDOWS)
    print(render("Around a window on a scripted board", found))
    return 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
