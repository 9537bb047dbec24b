"""`llem` as its user types it, with the experiments in containers of a real daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docker.daemon import Daemon

from llem_process import QUICK, Workplace, llem_command, run_on_terminal
from llenergymeasure.builtin_models.store import materialise
from llenergymeasure.core.host import marker
from llenergymeasure.domain.study import StudyManifest
from llenergymeasure.runners.docker import NAME_LABEL

pytestmark = pytest.mark.docker

UID = 54321
AsUser = Callable[..., "subprocess.CompletedProcess[str]"]

TOKEN = "hf_a-secret-that-nobody-may-see"

LONG = "measurement: {min_duration_seconds: 300}\n"


@pytest.fixture
def workplace(daemon: Daemon, torch_image: str) -> Iterator[Workplace]:
    """A place whose pytorch experiments run in containers.

    Not below pytest's own directory, which each of its sessions closes to other users as it begins.
    """
    environ = {"DOCKER_HOST": daemon.address, "LLEM_RUNNER_PYTORCH": f"docker:{torch_image}", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="llem-test-") as name:
        home = Path(name, "home")
        home.mkdir()
        yield Workplace(Path(name, "place"), home, environ)


def result_of(workplace: Workplace) -> dict[str, Any]:
    (path,) = workplace.results()
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


def linked_model(workplace: Workplace) -> str:
    """A model as it lies in a Hub's cache that no container sees, and by the link to it that an experiment names."""
    repository, there = workplace.root / "elsewhere" / "models--o--n", workplace.cwd / "a model, linked: é"
    shutil.copytree(materialise("builtin/tiny-llama"), repository / "blobs")
    snapshot = repository / "snapshots" / "5f"
    snapshot.mkdir(parents=True)
    for blob in (repository / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    there.symlink_to(snapshot)
    return f"./{there.name}"


def test_a_run_in_a_container_does_the_work_of_one_outside(workplace: Workplace, daemon: Daemon) -> None:
    quick = QUICK.replace("builtin/tiny-llama", f"'{linked_model(workplace)}'")
    workplace.write(
        "q.yaml", f"{quick}decoder: {{preset: deterministic}}\nprecision: fp32\nmeasurement: {{save_outputs: true}}\n"
    )
    inside = workplace.run("run", "q.yaml", "-o", "inside")
    outside = workplace.run("run", "q.yaml", "-o", "outside", LLEM_RUNNER_PYTORCH="local")
    assert (inside.returncode, outside.returncode) == (0, 0), inside.stderr + outside.stderr
    found, expected = (json.loads(path.read_text()) for path in workplace.results())
    for field in ("measurement_config_hash", "output_tokens", "input_tokens", "num_requests", "dataset", "model_name"):
        assert found[field] == expected[field], field
    texts = [path.read_text() for path in sorted(workplace.cwd.rglob("outputs.jsonl"))]
    assert texts[0] == texts[1] != ""
    assert (found["runner"], expected["runner"]) == (workplace.environ["LLEM_RUNNER_PYTORCH"], "local")
    assert found["image_digest"] == daemon("image", "inspect", "--format", "{{.Id}}", "llem-test/torch:1").strip()
    assert found["environment_snapshot"]["container"]["runtime"] == "docker"
    assert workplace.leftovers() == [f"tmp/{marker.NAME}"]  # containers share it, so it stays


def test_a_study_in_containers_is_whole_and_can_be_resumed(workplace: Workplace) -> None:
    workplace.write("s.yaml", f"{QUICK}sweep: {{random_seed: [1, 2]}}\nexecution: {{n_cycles: 1}}\n")
    study = workplace.run("run", "s.yaml", "--no-gaps")
    assert study.returncode == 0, study.stderr
    (directory,) = (path.parent for path in workplace.cwd.rglob("manifest.json"))
    manifest = StudyManifest.model_validate_json((directory / "manifest.json").read_text())
    assert (manifest.status, manifest.completed) == ("completed", 2)
    assert len(list(directory.glob("*/child.log"))) == 2
    again = workplace.run("run", "--resume", str(directory))
    assert "nothing to do" in again.stderr


@pytest.mark.parametrize(("kind", "sign"), [("q.yaml", "Measuring"), ("s.yaml", "c1/3")])
def test_ctrl_c_ends_the_container_and_the_command_says_so(
    workplace: Workplace, daemon: Daemon, kind: str, sign: str
) -> None:
    workplace.write("q.yaml", f"{QUICK}{LONG}")
    workplace.write("s.yaml", f"{QUICK}{LONG}sweep: {{random_seed: [1, 2]}}\n")
    ended = run_on_terminal(workplace, [*llem_command(), "run", kind], [(sign, signal.SIGINT)])
    assert (ended.signals_sent, ended.code) == (1, 130), ended.text
    assert daemon.containers() == []


def test_a_command_that_is_killed_leaves_no_container(workplace: Workplace, daemon: Daemon) -> None:
    workplace.write("q.yaml", f"{QUICK}{LONG}")
    ended = run_on_terminal(workplace, [*llem_command(), "run", "q.yaml"], [("Measuring", signal.SIGKILL)])
    assert (ended.signals_sent, ended.code) == (1, -signal.SIGKILL)
    wait_for(lambda: not daemon.containers())


def test_the_token_reaches_the_engine_and_no_command_line_and_no_file(workplace: Workplace, daemon: Daemon) -> None:
    workplace.write("q.yaml", f"{QUICK}{LONG}")
    command = [*llem_command(), "run", "q.yaml", "--verbose"]
    environ = {**workplace.variables, "HF_TOKEN": TOKEN}
    with open(workplace.root / "said", "wb") as said:
        running = subprocess.Popen(command, cwd=workplace.cwd, env=environ, stdout=said, stderr=said)
    try:
        wait_for(daemon.containers)
        (container,) = daemon.containers()
        known = json.loads(daemon("inspect", container))[0]
        assert f"HF_TOKEN={TOKEN}" in known["Config"]["Env"]
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert any(f"--label\0{NAME_LABEL}=".encode() in line for line in lines)
        assert not any(TOKEN.encode() in line for line in lines)
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)
    files = [path for path in workplace.root.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


@pytest.fixture
def as_user(workplace: Workplace) -> AsUser:
    """Runs `llem` as a user without rights, who may read what this interpreter is made of."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    owned = [workplace.home, workplace.root, *workplace.root.rglob("*")]
    for path in owned:
        os.chown(path, UID, UID)
    for parent in workplace.root.parents:
        if parent.stat().st_uid == os.geteuid() and parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    capability = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    prefix = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", *capability]
    return lambda *arguments: workplace.call([*prefix, sys.executable, "-m", "llenergymeasure", *arguments])


def socket_of(daemon: Daemon) -> Path:
    return Path(daemon.address.removeprefix("unix://"))


def test_files_are_owned_by_whoever_asked(workplace: Workplace, daemon: Daemon, as_user: AsUser) -> None:
    socket_of(daemon).chmod(0o666)
    try:
        done = as_user("run", "q.yaml")
    finally:
        socket_of(daemon).chmod(0o660)
    assert done.returncode == 0, done.stderr
    assert result_of(workplace)["runner"] == workplace.environ["LLEM_RUNNER_PYTORCH"]
    assert {path.stat().st_uid for path in workplace.root.rglob("*")} == {UID}
    assert {path.stat().st_uid for path in workplace.home.rglob("*")} == {UID}


def refused(workplace: Workplace, run: Callable[..., subprocess.CompletedProcess[str]]) -> str:
    """What `llem run` says of an experiment, its dry run, a study of it and that study's dry run; all say the same."""
    workplace.write("s.yaml", f"{workplace.cwd.joinpath('q.yaml').read_text()}sweep: {{random_seed: [1, 2]}}\n")
    said = [run("run", name, *more) for name in ("q.yaml", "s.yaml") for more in ([], ["--dry-run"])]
    assert [each.returncode for each in said] == [1, 1, 1, 1], [each.stderr for each in said]
    texts = {each.stderr[each.stderr.index("Pre-flight failed") :] for each in said}
    assert len(texts) == 1, texts
    assert workplace.results() == []
    return texts.pop()


def test_without_the_right_to_the_socket_nothing_starts(workplace: Workplace, as_user: AsUser) -> None:
    assert "permission denied" in (text := refused(workplace, as_user))
    assert "sudo usermod -aG docker $USER" in text


def test_without_a_daemon_nothing_starts(workplace: Workplace) -> None:
    workplace.environ = {**workplace.environ, "DOCKER_HOST": f"unix://{workplace.root}/nowhere"}
    assert "Start it: sudo systemctl start docker" in refused(workplace, workplace.run)


def test_a_missing_image_is_told_before_anything_starts(workplace: Workplace) -> None:
    workplace.environ = {**workplace.environ, "LLEM_RUNNER_PYTORCH": "docker:llenergymeasure/pytorch:2.0.0-cuda13"}
    assert "docker/build pytorch" in refused(workplace, workplace.run)


def test_an_image_of_another_release_is_told_before_anything_starts(workplace: Workplace, torch_image: str) -> None:
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", "llem-test/older:1", "-"],
        input=f"FROM {torch_image}\nLABEL llenergymeasure.version=1.9.0\n",
        text=True,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        check=True,
    )
    workplace.environ = {**workplace.environ, "LLEM_RUNNER_PYTORCH": "docker:llem-test/older:1"}
    assert "has llenergymeasure 1.9.0, and this is 2.0.0. Make it anew." in refused(workplace, workplace.run)


def test_without_a_docker_client_nothing_starts(workplace: Workplace) -> None:
    workplace.environ = {**workplace.environ, "PATH": str(workplace.root)}
    assert "Docker is not installed. See https://docs.docker.com/engine/install/" in refused(workplace, workplace.run)


def test_what_the_engine_in_the_container_refuses_is_told_alike(workplace: Workplace) -> None:
    workplace.write("q.yaml", QUICK.replace("n: 2", "n: 3"))
    assert "it has 2" in refused(workplace, workplace.run)


def test_config_shows_daemon_and_images_as_they_are(workplace: Workplace) -> None:
    told = workplace.run("config").stdout
    section = told[told.index("Docker, and an image of each engine") :]
    assert "docker       yes" in section
    assert "pytorch      yes  llem-test/torch:1, 2.0.0 (sha256:" in section
    assert "vllm         no   there is no image llenergymeasure/vllm:2.0.0-cuda13" in section
    assert "docker/build vllm" in section
