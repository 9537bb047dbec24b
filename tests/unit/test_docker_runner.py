"""Containers of jobs: what the client is asked to start, without a daemon; `tests/docker` has the real one."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fake_nvml import FakeGpu, FakeNvml
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.host.docker import default_image, explain, find_image, how_to_get
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.progress import ignore_events
from llenergymeasure.exceptions import DockerError, PreFlightError
from llenergymeasure.runners.docker import DockerLauncher, container_for, passed_on
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.mounts import Mount, at_their_places, named_paths
from llenergymeasure.runners.process import ChildTask
from llenergymeasure.runners.supervise import ChildFailedError, Interrupt

DIGEST = "sha256:" + "5" * 64
KNOWN = f'[{{"Id": "{DIGEST}", "Config": {{"Labels": {{"llenergymeasure.version": "2.0.0"}}}}}}]'
SETTINGS = UserConfig.model_validate({"runners": {"pytorch": "docker:image:1", "vllm": "docker:other:2"}})
TWO_GPUS = (FakeGpu(uuid="GPU-a"), FakeGpu(uuid="GPU-b"))


@pytest.fixture
def client(tmp_path: Path) -> dict[str, str]:
    """A `docker` on the PATH that knows every image, and tells of one that has no labels."""
    return scripted_client(tmp_path, f"echo '{KNOWN}'")


def scripted_client(directory: Path, script: str) -> dict[str, str]:
    program = directory / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{directory}:/bin"}


def host_of(environ: Mapping[str, str], directory: Path, gpus: Sequence[FakeGpu] = ()) -> Host:
    return Host(environ, open_driver=lambda: FakeNvml(*gpus), calibration_dir=directory / "none")


def command_for(
    config: Mapping[str, Any],
    environ: Mapping[str, str],
    directory: Path,
    gpus: Sequence[FakeGpu] = (),
    machine: UserConfig = SETTINGS,
) -> list[str]:
    """What is started for an experiment whose job lies in `directory`."""
    host = host_of(environ, directory, gpus)
    experiment = ExperimentConfig.model_validate({"model": "gpt2", **config})
    container = container_for([experiment], machine, host)
    return container.command(ChildTask(directory, directory / "log", cwd=directory, place=container))


def job_where(run: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of a machine where `docker run` does as the script says."""
    work = directory / "work"
    work.mkdir()
    client = scripted_client(directory, f"case $1 in image) echo '{KNOWN}';; run) {run};; esac")
    monkeypatch.setenv("PATH", client["PATH"])
    config = ExperimentConfig.model_validate({"model": "gpt2", "pytorch": {"device": "cpu"}})
    return Job(config, SETTINGS, work)


def values_of(option: str, command: Sequence[str]) -> list[str]:
    return [value for word, value in pairwise(command) if word == option]


def mounts_of(command: Sequence[str]) -> dict[str, list[str]]:
    rows = list(csv.reader(values_of("--mount", command)))
    return {row[1].removeprefix("source="): [row[2].removeprefix("target="), *row[3:]] for row in rows}


def test_a_container_is_ephemeral_named_the_callers_own_and_of_the_very_image(
    client: dict[str, str], tmp_path: Path
) -> None:
    command = command_for({}, client, tmp_path)
    assert command[:2] == ["docker", "run"]
    assert {"--rm", "--init", "--interactive"} <= set(command)
    (name,) = values_of("--name", command)
    assert name.startswith(f"llem-{os.getpid()}-")
    assert values_of("--user", command) == [f"{os.getuid()}:{os.getgid()}"]
    assert values_of("--shm-size", command) == ["8g"]
    assert values_of("--pull", command) == ["never"]
    assert command[command.index(DIGEST) :][:3] == [DIGEST, "-m", "llenergymeasure.runners.job"]
    assert f"LLEM_JOB_DIR={tmp_path}" in values_of("--env", command)
    assert mounts_of(command)[str(tmp_path)] == [str(tmp_path)]


def test_two_containers_have_two_names(client: dict[str, str], tmp_path: Path) -> None:
    names = {values_of("--name", command_for({}, client, tmp_path))[0] for _ in range(2)}
    assert len(names) == 2


def test_gpus_are_named_by_uuid_in_quotes_of_their_own(client: dict[str, str], tmp_path: Path) -> None:
    both = {"pytorch": {"num_processes": 2}}
    assert values_of("--gpus", command_for(both, client, tmp_path, TWO_GPUS)) == ['"device=GPU-a,GPU-b"']
    assert values_of("--gpus", command_for({}, client, tmp_path, TWO_GPUS)) == ['"device=GPU-a"']
    second = {**client, "CUDA_VISIBLE_DEVICES": "1"}
    assert values_of("--gpus", command_for({}, second, tmp_path, TWO_GPUS)) == ['"device=GPU-b"']


def test_an_experiment_on_the_cpu_asks_for_no_gpu(client: dict[str, str], tmp_path: Path) -> None:
    assert values_of("--gpus", command_for({"pytorch": {"device": "cpu"}}, client, tmp_path, TWO_GPUS)) == []
    assert values_of("--gpus", command_for({}, client, tmp_path)) == []


def test_a_token_is_in_a_file_of_its_owner_alone_and_on_no_command_line(client: dict[str, str], tmp_path: Path) -> None:
    environ = {**client, "HF_TOKEN": " hf_secret\n", "https_proxy": "http://user:pw@proxy"}
    container = container_for([ExperimentConfig(model="gpt2")], SETTINGS, host_of(environ, tmp_path))
    command = container.command(ChildTask(tmp_path, tmp_path / "log", cwd=tmp_path, place=container))
    assert not any("secret" in word or "pw" in word for word in command)
    passed = values_of("--env", command)
    assert ("https_proxy" in passed, "HF_TOKEN" in passed) == (True, False)
    (path,) = values_of("--env-file", command)
    assert Path(path).read_text() == "HF_TOKEN=hf_secret\n"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert values_of("--env-file", command_for({}, client, tmp_path)) == []


def test_variables_that_name_places_here_or_concern_nobody_there_stay_here() -> None:
    environ = {"HF_TOKEN": "t", "HF_HUB_CACHE": "/cache", "VLLM_USE_V1": "1", "PATH": "/bin", "EDITOR": "vi"}
    assert sorted(passed_on(environ)) == ["HF_TOKEN", "VLLM_USE_V1"]


def test_what_an_experiment_names_is_there_to_be_read_at_its_own_place(
    client: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, prompts = tmp_path / "a, b", tmp_path / "prompts.jsonl"
    model.mkdir()
    prompts.touch()
    (tmp_path / "job").mkdir()
    command = command_for({"model": str(model), "dataset": "prompts.jsonl"}, client, tmp_path / "job")
    mounts = mounts_of(command)
    assert mounts[str(model)] == [str(model), "readonly"]
    assert mounts[str(prompts)] == [str(prompts), "readonly"]


def test_only_what_exists_is_a_path_and_where_results_go_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = ExperimentConfig.model_validate(
        {"model": "org/name", "output_dir": str(tmp_path), "lora": {"adapter_path": "adapter"}}
    )
    assert named_paths([config, config]) == [adapter]


@pytest.mark.parametrize("missing", ["Error: No such image: image:1", "Error response from daemon: no such image: x"])
def test_an_image_that_is_not_here_refuses_its_experiments_with_the_setting(tmp_path: Path, missing: str) -> None:
    environ = scripted_client(tmp_path, f"echo '{missing}' >&2; exit 1")
    with pytest.raises(PreFlightError) as caught:
        command_for({}, environ, tmp_path)
    assert caught.value.failures == (
        "runners.pytorch: docker:image:1: there is no image image:1 on this machine. Fetch it: docker pull image:1",
    )


@pytest.mark.parametrize("answer", ["no JSON", "[]", "[1]", '[{"Id": "x"}]'])
def test_an_answer_about_an_image_that_makes_no_sense_is_an_error(tmp_path: Path, answer: str) -> None:
    with pytest.raises(DockerError, match="tells nothing of the image image:1 that can be read"):
        find_image("image:1", scripted_client(tmp_path, f"echo '{answer}'"))


def test_an_image_without_a_label_may_be_of_this_release(tmp_path: Path) -> None:
    unlabelled = f'[{{"Id": "{DIGEST}", "Config": {{"Labels": null}}}}]'
    assert find_image("image:1", scripted_client(tmp_path, f"echo '{unlabelled}'")).version is None


def test_an_image_of_another_release_is_refused(tmp_path: Path) -> None:
    environ = scripted_client(tmp_path, f"echo '{KNOWN.replace('2.0.0', '1.9.0')}'")
    with pytest.raises(
        DockerError, match=r"has llenergymeasure 1\.9\.0, and this is 2\.0\.0\. Make it anew\. Build it"
    ):
        find_image(default_image("vllm"), environ)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (default_image("vllm"), "docker/build vllm"),
        ("llenergymeasure/pytorch:2.0.0-cpu", "docker/build cpu"),
        ("llenergymeasure/other:1", "docker pull llenergymeasure/other:1"),
        ("vllm/vllm-openai:v1", "docker pull vllm/vllm-openai:v1"),
    ],
)
def test_the_command_that_gets_an_image_is_the_one_that_works_for_it(name: str, command: str) -> None:
    assert how_to_get(name).endswith(command)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("docker: Error response from daemon: No such image: x.\nSee 'docker run --help'.", "No such image: x."),
        ("permission denied while trying to connect", "sudo usermod -aG docker $USER"),
        ("Cannot connect to the Docker daemon at unix:///s", "sudo systemctl start docker"),
        ('docker: could not select device driver "" with capabilities', "Install the NVIDIA Container Toolkit"),
        ("write /x: no space left on device", "docker system prune"),
        (
            'docker: Error response: type "bind": bind source path does not exist: /x.',
            "(docker context ls; DOCKER_HOST).",
        ),
        ("", "no reason given."),
    ],
)
def test_what_the_client_says_is_told_with_what_to_do(said: str, meaning: str) -> None:
    assert explain(said).endswith(meaning) or meaning in explain(said)


def test_caches_named_by_variables_are_shared_and_a_token_file_is_read_only(
    client: dict[str, str], tmp_path: Path
) -> None:
    token, cache = tmp_path / "token", tmp_path / "cache"
    token.touch()
    places = {"HF_HUB_CACHE": str(cache), "HF_TOKEN_PATH": str(token)}
    (tmp_path / "job").mkdir()
    command = command_for({}, {**client, **places}, tmp_path / "job")
    mounts = mounts_of(command)
    assert mounts[str(cache)] == [str(cache)]
    assert mounts[str(token)] == [str(token), "readonly"]
    assert {f"{name}={value}" for name, value in places.items()} <= set(values_of("--env", command))


def test_what_lies_in_a_cache_is_mounted_once(client: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cache" / "model").mkdir(parents=True)
    (tmp_path / "job").mkdir()
    environ = {**client, "HF_HUB_CACHE": str(tmp_path / "cache")}
    mounts = mounts_of(command_for({"model": str(tmp_path / "cache" / "model")}, environ, tmp_path / "job"))
    assert str(tmp_path / "cache") in mounts
    assert str(tmp_path / "cache" / "model") not in mounts


def test_places_named_from_the_current_directory_are_absolute_and_told_once(
    client: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job").mkdir()
    environ = {**client, "HF_HOME": "rel/home", "HF_HUB_CACHE": "rel/hub", "HF_TOKEN_PATH": ""}
    machine = SETTINGS.model_copy(update={"output": SETTINGS.output.model_copy(update={"model_cache_dir": "models"})})
    command = command_for({}, environ, tmp_path / "job", machine=machine)
    mounts = mounts_of(command)
    for place in ("rel/home", "rel/hub", "models"):
        assert mounts[str(tmp_path / place)] == [str(tmp_path / place)]
    variables = values_of("--env", command)
    assert {f"HF_HOME={tmp_path}/rel/home", f"HF_HUB_CACHE={tmp_path}/rel/hub"} <= set(variables)
    assert not {"HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH"} & set(variables)


@pytest.mark.parametrize("named", [{}, {"lora": {"adapter_path": "~/.cache"}}], ids=["by the Hub", "by an experiment"])
def test_a_place_is_mounted_or_empty_and_never_both(
    client: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any]
) -> None:
    home, cache = tmp_path / "home", tmp_path / "home" / ".cache"
    cache.mkdir(parents=True)
    (tmp_path / "job").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    hub = {} if named else {"HF_HOME": str(cache)}
    command = command_for(named, {**client, **hub}, tmp_path / "job")
    assert values_of("--tmpfs", command) == [f"{home}:exec,mode=1777"]
    assert str(cache) in mounts_of(command)


@pytest.mark.parametrize(
    ("named", "looked_for"),
    [("hub/models--o--n/snapshots/5f", "hub/models--o--n/blobs/b10b"), ("work/here/llama", "work/blobs/b10b")],
    ids=["a snapshot", "a link to it"],
)
def test_what_links_lead_to_is_where_a_container_follows_them_to(tmp_path: Path, named: str, looked_for: str) -> None:
    repository = tmp_path / "hub" / "models--o--n"
    snapshot, blob = repository / "snapshots" / "5f", repository / "blobs" / "b10b"
    for directory in (snapshot, blob.parent, tmp_path / "work" / "here"):
        directory.mkdir(parents=True)
    blob.touch()
    (snapshot / "config.json").symlink_to("../../blobs/b10b")
    (snapshot / "gone").symlink_to("nowhere")
    (tmp_path / "work" / "here" / "llama").symlink_to(snapshot)
    path = tmp_path / named
    found = list(at_their_places([], [path], tmp_path / "home"))
    assert found == [Mount(path, path, read_only=True), Mount(blob, tmp_path / looked_for, read_only=True)]


def test_a_token_file_that_is_not_there_yet_is_made_by_nobody(client: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    command_for({}, {**client, "HF_TOKEN_PATH": str(tmp_path / "token")}, tmp_path / "job")
    assert not (tmp_path / "token").exists()


READY = 'echo \'{"is": "Ready", "version": "2.0.0"}\''
"""What a job says before it waits for the word to begin."""


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        ("echo 'docker: no such device' >&2; exit 125", "no such device."),
        (
            'echo "python3: No module named llenergymeasure" >&2; exit 1',
            "python3: No module named llenergymeasure. Take an image whose python3 has llenergymeasure 2.0.0.",
        ),
        ("echo importing >&2; exit 139", "its container: segmentation fault (signal 11)"),
    ],
)
def test_a_container_in_which_no_job_began_is_refused_by_a_run_and_before_a_study_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str, reason: str
) -> None:
    job = job_where(ended, tmp_path, monkeypatch)
    with pytest.raises(PreFlightError) as caught:
        DockerLauncher(preload=lambda backend: ()).run(job, ignore_events, Interrupt())
    expected = f"runners.pytorch: docker:image:1: no job began in its container: {reason}"
    assert caught.value.failures == (expected,)
    assert DockerLauncher(preload=lambda backend: ()).failures([job.config], SETTINGS) == [[expected]]


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (
            "echo 'error waiting for container: EOF' >&2; exit 125",
            "the Docker client: ended with exit code 125 and without a result (last output: error waiting for "
            "container: EOF)",
        ),
        (
            "echo half of it is done >&2; exit 3",
            "its container: ended with exit code 3 and without a result (last output: half of it is done)",
        ),
        ("echo half >&2; exit 134", "its container: aborted (signal 6): a failed assertion in a native library (last"),
    ],
)
def test_what_ends_at_work_is_a_crash_that_says_what_died_how_and_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str, told: str
) -> None:
    job = job_where(f"{READY}; read word; {ended}", tmp_path, monkeypatch)
    with pytest.raises(ChildFailedError) as caught:
        DockerLauncher(preload=lambda backend: ()).run(job, ignore_events, Interrupt())
    assert str(caught.value).startswith(told)


def test_a_job_of_another_release_is_refused_as_its_image_would_be_by_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_where(READY.replace("2.0.0", "1.9.0"), tmp_path, monkeypatch)
    with pytest.raises(PreFlightError) as caught:
        DockerLauncher(preload=lambda backend: ()).run(job, ignore_events, Interrupt())
    assert caught.value.failures == (
        "runners.pytorch: docker:image:1: the image image:1 has llenergymeasure 1.9.0, and this is 2.0.0. "
        "Make it anew. Fetch it: docker pull image:1",
    )
