"""What a job sees from inside a container: its user, its places, its variables, its GPUs and their idle power."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_container import IDLE_S, idle_power
from tests.docker.conftest import made, plain_content
from tests.docker.daemon import Daemon, running_daemon
from tests.nvml.fixtures import ScriptedNvmlFactory

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.progress import StepStarted, ignore_events
from llenergymeasure.exceptions import PreFlightError
from llenergymeasure.runners.child import ParentLink
from llenergymeasure.runners.docker import DockerLauncher, container_for
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.process import ChildTask
from llenergymeasure.runners.supervise import ChildGroup, Interrupt, Patience

pytestmark = pytest.mark.docker

ON_CPU = ExperimentConfig.model_validate({"model": "m", "pytorch": {"device": "cpu"}})
HOOK = "nvidia-container-runtime-hook"
"""What a daemon looks for on its PATH before it takes `--gpus`."""


def settings(image: str) -> UserConfig:
    return UserConfig.model_validate({"runners": {"pytorch": f"docker:{image}"}})


def told_inside(image: str, entry: str, directory: Path) -> Any:
    """What a function says that runs in a container as a job would."""
    directory.mkdir()
    place = container_for([ON_CPU], settings(image), Host())
    task = ChildTask(directory, directory / "child.log", entry=entry, cwd=directory.parent, place=place)
    (said,) = ChildGroup([task], Patience()).run(ignore_events, Interrupt())
    return json.loads(said)


def test_a_job_is_its_users_own_and_sees_what_it_needs(
    plain_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("SECRET_OF_THE_HOST", "stays here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    seen = told_inside(plain_image, "in_container:surroundings", tmp_path / "job")
    assert (seen["uid"], seen["gid"]) == (os.getuid(), os.getgid())
    assert seen["directory"] == str(tmp_path)
    assert seen["environment"]["HF_TOKEN"] == "hf_secret"
    assert seen["environment"]["LLEM_JOB_DIR"] == str(tmp_path / "job")
    assert "SECRET_OF_THE_HOST" not in seen["environment"]
    assert seen["shared_memory_bytes"] == 8 * 1024**3
    assert seen["home_is_writable"]
    assert (tmp_path / "job" / "written").exists()


def test_idle_power_is_the_same_inside_and_outside(
    daemon: Daemon, scripted_nvml: ScriptedNvmlFactory, tmp_path: Path
) -> None:
    scripted_nvml.gpu(power_w=61.2, counter_period_s=0.01)  # a step that a busy machine misses is worth little
    nvml = scripted_nvml.playing
    needed = (nvml.shared_object, nvml.script, nvml.script.with_suffix(".shared"))
    files = {str(path).lstrip("/"): path for path in needed}
    image = made(daemon, "llem-test/nvml:1", **plain_content(), environ=nvml.environment(), further=files)
    inside_w, inside_s = told_inside(image, "in_container:idle_power", tmp_path / "inside")
    (tmp_path / "outside").mkdir()
    link: ParentLink = None  # type: ignore[assignment]
    outside_w, outside_s = json.loads(idle_power(tmp_path / "outside", link))
    assert inside_w == pytest.approx(outside_w, rel=0.01) == pytest.approx(61.2, rel=0.01)
    assert min(inside_s, outside_s) >= IDLE_S


def test_gpus_that_docker_cannot_give_are_told_before_anything_starts(
    plain_image: str, scripted_nvml: ScriptedNvmlFactory
) -> None:
    scripted_nvml.gpu(power_w=60.0)
    on_gpu = ExperimentConfig(model="m")
    ((failure,), of_cpu) = DockerLauncher(preload=lambda backend: ()).failures([on_gpu, ON_CPU], settings(plain_image))
    assert failure == (
        f"runners.pytorch: docker:{plain_image}: no job began in its container: could not select device driver "
        '"" with capabilities: [[gpu]]. Install the NVIDIA Container Toolkit, then restart Docker.'
    )
    assert failure not in of_cpu


@pytest.fixture
def daemon_with_gpus(
    tmp_path_factory: pytest.TempPathFactory, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Daemon]:
    """A daemon that takes `--gpus`, and whose hook gives nothing."""
    directory = tmp_path_factory.mktemp("gpus")  # short: the path of a socket has 107 characters at most
    programs = directory / "bin"
    programs.mkdir()
    (programs / HOOK).write_text("#!/bin/sh\nexit 0\n")
    (programs / HOOK).chmod(0o755)
    with running_daemon(directory, path=f"{programs}:{os.environ['PATH']}") as running:
        monkeypatch.setenv("DOCKER_HOST", running.address)
        yield running


def test_a_container_gets_its_experiments_gpus_by_uuid(
    daemon_with_gpus: Daemon, scripted_nvml: ScriptedNvmlFactory, tmp_path: Path
) -> None:
    gpu = scripted_nvml.gpu(power_w=60.0)
    image = made(daemon_with_gpus, "llem-test/plain:1", **plain_content())
    asked: list[list[str]] = []
    interrupt = Interrupt()

    def look(event: object) -> None:
        if isinstance(event, StepStarted):
            (container,) = daemon_with_gpus.containers()
            (request,) = json.loads(daemon_with_gpus("inspect", container))[0]["HostConfig"]["DeviceRequests"]
            asked.append(request["DeviceIDs"])

    (tmp_path / "job").mkdir()
    job = Job(ExperimentConfig(model="good"), settings(image), tmp_path / "job", timeout_s=60)
    with pytest.raises(PreFlightError, match=r"the pytorch backend needs torch>=.* \(none installed\)"):
        DockerLauncher(preload=lambda backend: ()).run(job, look, interrupt)
    assert asked == [[gpu.uuid]]
    assert daemon_with_gpus.containers() == []
