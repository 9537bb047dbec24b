"""Experiments of studies in tests: they measure nothing, and what their model is called says how they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable

import children
from llenergymeasure.core.artefacts import Artefacts
from llenergymeasure.core.progress import StepStarted
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.launcher import ExperimentJob, JobOutcome
from llenergymeasure.runners.local import MeasuredRun
from study_fakes import result_of


def measure(job: ExperimentJob, link: ParentLink) -> JobOutcome:
    """Does what the first word of the model's name says, then returns a result out of thin air."""
    link.observe(StepStarted("measure"))
    act = BEHAVIOURS.get(job.config.model.partition("-")[0])
    if act is not None:
        act(job, link)
    return JobOutcome(MeasuredRun(result_of(job.config), Artefacts()), job.baselines)


def _fail_once(job: ExperimentJob, link: ParentLink) -> None:
    marker = job.work_dir.parents[1] / "tried"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _remove_study(job: ExperimentJob, link: ParentLink) -> None:
    shutil.rmtree(job.work_dir.parents[1])


def _freeze_study(job: ExperimentJob, link: ParentLink) -> None:
    """Root writes wherever permissions forbid it, but not into an immutable directory."""
    subprocess.run(["chattr", "+i", str(job.work_dir.parents[1])], check=True)


def _fill_disk(job: ExperimentJob, link: ParentLink) -> None:
    with contextlib.suppress(OSError), open(job.work_dir.parents[1] / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


BEHAVIOURS: dict[str, Callable[[ExperimentJob, ParentLink], object]] = {
    "segfault": children.segfault,
    "killed": children.kill_itself,
    "hang": children.hang,
    "chatter": children.print_for_ever,
    "hungry": lambda job, link: children.exhaust_memory(1 << 31, link),
    "raises": lambda job, link: children.raise_backend_error("out of memory: reduce pytorch.batch_size", link),
    "once": _fail_once,
    "vanish": _remove_study,
    "frozen": _freeze_study,
    "full": _fill_disk,
    "deaf": children.hang_deaf_to_sigterm,
}
