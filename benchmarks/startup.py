"""How long the command line and the import take, as multiples of a bare `python -c pass`.

Every command is run in turn, round after round, so that a noisy neighbour hits all of them alike; the medians are
compared. Ratios say more than milliseconds: they hardly change from machine to machine.

    python -m benchmarks.startup [--quick] [--check]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import Figure, main

ROUNDS = 15
QUICK_ROUNDS = 2

LLEM = [str(Path(sys.executable).with_name("llem"))]
PYTHON = [sys.executable]

BARE = "python -c pass"
COMMANDS = {
    BARE: [*PYTHON, "-c", "pass"],
    "import llenergymeasure": [*PYTHON, "-c", "import llenergymeasure"],
    "llem --version": [*LLEM, "--version"],
    "llem --help": [*LLEM, "--help"],
    "llem run --help": [*LLEM, "run", "--help"],
}
TARGETS = {"import llenergymeasure": 3.0, "llem --version": 6.0, "llem --help": 25.0, "llem run --help": 25.0}


def measure(quick: bool) -> list[Figure]:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():  # once before the clock counts: compiled files, disk cache
        seconds_of(command)
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        for name, command in COMMANDS.items():
            seconds[name].append(seconds_of(command))
    bare_s = statistics.median(seconds[BARE])
    figures = [Figure(BARE, bare_s * 1000, "ms")]
    for name, target in TARGETS.items():
        median_s = statistics.median(seconds[name])
        figures.append(Figure(name, median_s / bare_s, "x bare", target, f"{median_s * 1000:.0f} ms"))
    return figures


def seconds_of(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main("Start-up", measure))
