"""What becomes of a study in containers when things go wrong, by making them go wrong on a real daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.docker.daemon import Daemon
from tests.docker.image import REPOSITORY, build_image

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import StepStarted, ignore_events
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import ExperimentError, PreFlightError
from llenergymeasure.results.persistence import load_result
from llenergymeasure.runners.child import DEFAULT_ENTRY
from llenergymeasure.runners.docker import FILES_LABEL, NAME_LABEL, DockerLauncher
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.supervise import ChildFailedError, Interrupt, Patience, RunInterruptedError
from llenergymeasure.study.manifest import load_manifest
from llenergymeasure.study.plan import RunFinished, StudyEvent, StudyObserver
from llenergymeasure.study.runner import StudyHost, StudyRunner, StudyStoppedError
from mounts import fill
from study_fakes import study_of

pytestmark = pytest.mark.docker

PATIENCE = Patience(imports_s=60, teardown_s=2, exit_s=10)
TIMEOUT_S = 6.0


def launcher(entry: str = "study_children:measure") -> DockerLauncher:
    return DockerLauncher(entry, preload=lambda backend: (), patience=PATIENCE)


def settings(image: str) -> UserConfig:
    return UserConfig.model_validate({"runners": {"pytorch": f"docker:{image}"}})


def job(image: str, directory: Path, model: str = "good", timeout_s: float | None = 60) -> Job:
    directory.mkdir()
    return Job(ExperimentConfig(model=model), settings(image), directory, timeout_s=timeout_s)


def run_study(
    image: str, directory: Path, *models: str, observer: StudyObserver = ignore_events, **execution: float
) -> StudyResult:
    host = StudyHost(launcher(), leftovers=lambda: (), observer=observer)
    study = study_of(*models, max_consecutive_failures=99, **execution)
    return StudyRunner(study, directory, settings(image), host).run()


def reasons_of(result: StudyResult) -> dict[str, str]:
    return {failed.config["model"]: f"{failed.error_type}: {failed.reason}" for failed in result.failed}


FAULTS = {
    "segfault": "Crash: its container: segmentation fault",
    "killed": "Crash: its container: killed by signal 9 (SIGKILL): out of memory?",
    "hang": f"Timeout: gave no sign of progress for {TIMEOUT_S:g} s and was stopped",
    "chatter": f"Timeout: took longer than {2 * TIMEOUT_S:g} s and was stopped",
    "raises": "BackendError: out of memory: reduce pytorch.batch_size",
    "deaf": f"Timeout: gave no sign of progress for {TIMEOUT_S:g} s and was stopped",
}


def test_fault_in_one_container_costs_that_experiment_alone_and_leaves_none(
    plain_image: str, daemon: Daemon, tmp_path: Path
) -> None:
    left: list[list[str]] = []

    def look(event: StudyEvent) -> None:
        if isinstance(event, RunFinished):
            left.append(daemon.containers())

    limits = {"experiment_timeout_seconds": 2 * TIMEOUT_S, "silence_timeout_seconds": TIMEOUT_S}
    result = run_study(plain_image, tmp_path, "good-1", *FAULTS, "good-2", observer=look, **limits)
    assert left == [[]] * (len(FAULTS) + 2)
    assert [load_result(tmp_path / file).model_name for file in result.result_files] == ["good-1", "good-2"]
    reasons = reasons_of(result)
    assert {model: reasons[model][: len(reason)] for model, reason in FAULTS.items()} == FAULTS
    assert load_manifest(tmp_path).status == "completed"


def when_measuring(act: Callable[[], object]) -> Callable[[object], None]:
    """An observer that does something, in a thread of its own, when the job measures."""

    def observer(event: object) -> None:
        if isinstance(event, StepStarted) and event.step == "measure":
            threading.Thread(target=act).start()

    return observer


def test_a_container_that_is_killed_is_a_failed_experiment(plain_image: str, daemon: Daemon, tmp_path: Path) -> None:
    observer = when_measuring(lambda: daemon("kill", *daemon.containers()))
    with pytest.raises(ChildFailedError, match=r"its container: killed by signal 9 \(SIGKILL\): out of memory\?"):
        launcher().run(job(plain_image, tmp_path / "job", "hang"), observer, Interrupt())


def test_a_container_out_of_memory_is_a_failed_experiment(plain_image: str, daemon: Daemon, tmp_path: Path) -> None:
    def limit() -> None:
        daemon("update", "--memory", "300m", "--memory-swap", "300m", *daemon.containers())
        (tmp_path / "job" / "limited").touch()

    given = job(plain_image, tmp_path / "job")
    with pytest.raises(ChildFailedError, match=r"killed by signal 9 \(SIGKILL\): out of memory\?"):
        launcher("in_container:eat_memory").run(given, when_measuring(limit), Interrupt())


def test_a_client_that_is_killed_leaves_no_container(plain_image: str, daemon: Daemon, tmp_path: Path) -> None:
    def kill_client() -> None:
        (client,) = (child for child in psutil.Process().children() if child.cmdline()[:2] == ["docker", "run"])
        client.kill()

    with pytest.raises(ChildFailedError, match="the Docker client: killed by signal 9"):
        launcher().run(job(plain_image, tmp_path / "job", "hang"), when_measuring(kill_client), Interrupt())
    assert daemon.containers() == []


def test_a_container_that_was_made_for_a_client_that_is_gone_goes_with_the_next(
    plain_image: str, daemon: Daemon, tmp_path: Path
) -> None:
    """One whose job is still there, and one of somebody who sees other files, are let alone."""
    (tmp_path / "of another").mkdir()
    files = os.readlink("/proc/self/ns/mnt")
    _, at_work, elsewhere = (
        daemon("create", *labels(tmp_path / name, seen), plain_image, "python3").strip()
        for name, seen in (("gone", files), ("of another", files), ("not here", "mnt:[1]"))
    )
    launcher().run(job(plain_image, tmp_path / "job"), ignore_events, Interrupt())
    assert set(daemon.containers()) == {at_work, elsewhere}
    daemon("rm", at_work, elsewhere)


def labels(directory: Path, files: str) -> list[str]:
    return ["--label", f"{NAME_LABEL}={directory}", "--label", f"{FILES_LABEL}={files}"]


def test_an_interrupt_ends_the_container(plain_image: str, daemon: Daemon, tmp_path: Path) -> None:
    interrupt = Interrupt()
    with pytest.raises(RunInterruptedError):
        launcher().run(job(plain_image, tmp_path / "job", "hang"), when_measuring(interrupt.request), interrupt)
    assert daemon.containers() == []


def test_a_container_that_was_prepared_for_nothing_ends(plain_image: str, daemon: Daemon, tmp_path: Path) -> None:
    prepared = launcher()
    prepared.prepare(job(plain_image, tmp_path / "job"))
    prepared.discard()
    assert daemon.containers() == []


def test_what_is_no_result_is_a_failed_experiment(plain_image: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="is no result"):
        launcher("in_container:no_result").run(job(plain_image, tmp_path / "job"), ignore_events, Interrupt())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, four megabytes large."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_stops_the_study_and_keeps_what_is_finished(plain_image: str, small_disk: Path) -> None:
    def observer(event: StudyEvent) -> None:
        if isinstance(event, RunFinished) and event.run.position == 1:
            fill(small_disk, leave_pages=0)

    study_dir = small_disk / "study"
    study_dir.mkdir()
    with pytest.raises(StudyStoppedError, match="No space left on device"):
        run_study(plain_image, study_dir, "good-1", "good-2", observer=observer)
    assert len(list(study_dir.glob("*/result.json"))) == 1


def refusal(image: str, directory: Path) -> str:
    """Why nothing runs in `image`, as the study's pre-flight and as a run say it: in the same words."""
    asked = launcher().failures([ExperimentConfig(model="m")], settings(image))
    with pytest.raises(PreFlightError) as caught:
        launcher(DEFAULT_ENTRY).run(job(image, directory / "job"), ignore_events, Interrupt())
    assert asked == [list(caught.value.failures)]
    return asked[0][0]


def test_an_image_that_is_missing_is_never_fetched_but_told_with_its_command(tmp_path: Path) -> None:
    assert refusal("nowhere/at-all:1", tmp_path) == (
        "runners.pytorch: docker:nowhere/at-all:1: there is no image nowhere/at-all:1 on this machine. "
        "Fetch it: docker pull nowhere/at-all:1"
    )


def test_one_of_ours_that_is_missing_is_told_with_how_to_build_it(tmp_path: Path) -> None:
    assert refusal("llenergymeasure/pytorch:2.0.0-cpu", tmp_path).endswith("2.0.0: docker/build cpu")


def test_an_image_that_does_not_say_its_release_is_found_out_by_the_handshake(daemon: Daemon, tmp_path: Path) -> None:
    other = tmp_path / "constants.py"
    text = (REPOSITORY / "src/llenergymeasure/constants.py").read_text()
    other.write_text(text.replace('VERSION: Final = "2.0.0"', 'VERSION: Final = "1.9.0"', 1))
    build_image("llem-test/unlabelled:1", version=None, more={"opt/site/llenergymeasure/constants.py": other})
    said = refusal("llem-test/unlabelled:1", tmp_path)
    assert "has llenergymeasure 1.9.0, and this is 2.0.0. Make it anew." in said


def test_an_image_without_a_python_is_told(daemon: Daemon, tmp_path: Path) -> None:
    subprocess.run(["docker", "import", "-", "llem-test/empty:1"], input=bytes(10240), check=True)
    assert "no job began in its container: " in refusal("llem-test/empty:1", tmp_path)


def test_an_image_without_this_package_is_told(plain_image: str, tmp_path: Path) -> None:
    build = f"FROM {plain_image}\nENV PYTHONPATH=\n"
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", "llem-test/foreign:1", "-"],
        input=build,
        text=True,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        check=True,
    )
    said = refusal("llem-test/foreign:1", tmp_path)
    assert "no job began in its container: " in said
    assert said.endswith("Take an image whose python3 has llenergymeasure 2.0.0.")


def test_a_daemon_with_other_users_than_this_machine_is_told(
    plain_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that maps them, as a rootless one does: whoever asked is somebody else in its containers."""
    client, here = tmp_path / "docker", f"{os.getuid()}:{os.getgid()}"
    client.write_text(f'#!/bin/bash\nexec {shutil.which("docker")} "${{@/#{here}/54321:54321}}"\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    said = refusal(plain_image, tmp_path)
    assert "no job began in its container: a job of user 54321 cannot use its directory. " in said
    assert "neither a remote nor a rootless one" in said


def test_without_a_daemon_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere")
    said = refusal("image:1", tmp_path)
    assert "Cannot connect to the Docker daemon" in said
    assert said.endswith("Start it: sudo systemctl start docker")


def test_a_study_whose_runner_cannot_run_fails_each_of_its_experiments_in_those_words(tmp_path: Path) -> None:
    result = run_study("nowhere/at-all:1", tmp_path, "a", "b")
    assert result.summary.failed == 2
    assert "there is no image nowhere/at-all:1" in reasons_of(result)["a"]


def test_settings_of_the_job_are_those_of_a_process_in_its_container(plain_image: str, tmp_path: Path) -> None:
    given = job(plain_image, tmp_path / "job")
    run = launcher().run(given, ignore_events, Interrupt())
    assert run.result.runner == f"docker:{plain_image}"
    assert (run.result.image_digest or "").startswith("sha256:")
    assert given.machine.runners.pytorch == f"docker:{plain_image}"
