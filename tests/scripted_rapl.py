"""A command on a processor whose RAPL counter shows a constant power: `python scripted_rapl.py WATTS COMMAND …`.

The counter is in a name space of its own (mount_namespaces(7)), so it needs root, and nobody else sees it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

CLASSES = Path("/sys/class")
UPDATE_S = 0.001


def main(watts: float, command: list[str]) -> int:
    """Run `command` to its end beside the counter; returns its exit code."""
    subprocess.run(["mount", "--types", "tmpfs", "none", str(CLASSES)], check=True)
    zone, control = CLASSES / "powercap" / "intel-rapl:0", CLASSES / "powercap" / "intel-rapl"
    zone.mkdir(parents=True)
    control.mkdir()
    (control / "subsystem").symlink_to("..")  # as the kernel has it; CodeCarbon looks there
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    ended, began_s = threading.Event(), time.monotonic()

    def count() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)  # of this thread: others may leave it no time
        while True:
            partial = zone / "partial"
            partial.write_text(f"{round(1e6 * watts * (time.monotonic() - began_s))}\n")
            partial.replace(zone / "energy_uj")
            if ended.wait(UPDATE_S):
                return

    counting = threading.Thread(target=count)
    counting.start()
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        ended.set()
        counting.join()


def beside_rapl(watts: float, *command: str) -> list[str]:
    """The command that runs `command` so."""
    return ["unshare", "--mount", sys.executable, os.path.abspath(__file__), str(watts), *command]


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
