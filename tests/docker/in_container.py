"""What jobs of tests do in containers besides what `study_children` has."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from llenergymeasure.core.baseline import measure_idle_power
from llenergymeasure.core.energy.select import select_energy_backend
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.progress import StepStarted, ignore_events
from llenergymeasure.runners.child import ParentLink

IDLE_S = 5.0


def no_result(directory: Path, link: ParentLink) -> str:
    """Hands back JSON that is no result."""
    return '{"result": "garbage"}'


def eat_memory(directory: Path, link: ParentLink) -> str:
    """Takes memory bit by bit until there is none, once it has a limit."""
    link.observe(StepStarted("measure"))
    while not (directory / "limited").exists():
        time.sleep(0.02)
    eaten = []
    while True:
        eaten.append(b"x" * 10_000_000)
        time.sleep(0.02)


def surroundings(directory: Path, link: ParentLink) -> str:
    """Who this job is, and what it sees."""
    (directory / "written").touch()
    shown = ("HF_TOKEN", "HF_HOME", "HOME", "LLEM_JOB_DIR", "SECRET_OF_THE_HOST")
    return json.dumps(
        {
            "uid": os.getuid(),
            "gid": os.getgid(),
            "directory": os.getcwd(),
            "environment": {name: os.environ[name] for name in shown if name in os.environ},
            "shared_memory_bytes": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
            "home_is_writable": os.access(os.environ["HOME"], os.W_OK),
        }
    )


def idle_power(directory: Path, link: ParentLink) -> str:
    """Idle power in watts, as an experiment's baseline takes it."""
    host = Host()
    devices = [gpu.uuid for gpu in host.visible_gpus()]
    meter = select_energy_backend("nvml", devices, MeterOptions(spill_dir=directory), host)
    baseline = measure_idle_power(IDLE_S, "baseline", meter, host.clock, ignore_events)
    return json.dumps([baseline.power_w, baseline.duration_s])
