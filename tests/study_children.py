"""Experiments of studies in tests: they measure nothing, and what their model is called says how they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import children
from llenergymeasure.core.progress import StepStarted
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.job import Job, MeasuredRun, read_job, run_to_json
from study_fakes import result_of


def measure(directory: Path, link: ParentLink) -> str:
    """Does what the first word of the model's name says, then returns a result out of thin air."""
    job = read_job(directory)
    link.observe(StepStarted("measure"))
    act = BEHAVIOURS.get(job.config.model.partition("-")[0])
    if act is not None:
        act(job, link)
    return run_to_json(MeasuredRun(result_of(job.config), Artefacts(), job.baselines), directory)


def _fail_once(job: Job, link: ParentLink) -> None:
    marker = job.work_dir.parents[1] / "tried"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _remove_study(job: Job, link: ParentLink) -> None:
    shutil.rmtree(job.work_dir.parents[1])


def _freeze_study(job: Job, link: ParentLink) -> None:
    """Root writes wherever permissions forbid it, but not into an immutable directory."""
    subprocess.run(["chattr", "+i", str(job.work_dir.parents[1])], check=True)


def _fill_disk(job: Job, link: ParentLink) -> None:
    with contextlib.suppress(OSError), open(job.work_dir.parents[1] / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


BEHAVIOURS: dict[str, Callable[[Job, ParentLink], object]] = {
    "segfault": lambda job, link: children.segfault(job.work_dir, link),
    "killed": lambda job, link: children.kill_itself(job.work_dir, link),
    "hang": lambda job, link: children.hang(job.work_dir, link),
    "chatter": lambda job, link: children.print_for_ever(job.work_dir, link),
    "hungry": lambda job, link: children.use_up_memory(1 << 31),
    "raises": lambda job, link: children.fail("out of memory: reduce pytorch.batch_size"),
    "once": _fail_once,
    "vanish": _remove_study,
    "frozen": _freeze_study,
    "full": _fill_disk,
    "deaf": lambda job, link: children.hang_deaf_to_sigterm(job.work_dir, link),
}
