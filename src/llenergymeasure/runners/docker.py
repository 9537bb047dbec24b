"""Jobs in containers: one ephemeral `docker run` per job, whose life is the job's.

    launcher ── docker run (client) ── daemon ── [ init ── guardian ── job ── engine workers … ]

The client's streams are the job's, so what holds for a child of this machine holds here: when the launcher is gone, its
end of the job's stdin closes and the guardian in the container kills everything. Whatever the client has left, because
it was killed itself or gave up, is removed by name.

A container sees its job's directory, the caches, and what the experiment names, each at its own place, and runs as the
user who asked, so that its files are theirs. No value of this process's environment stands on a command line: variables
go by name, and tokens in a file.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import platformdirs

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.constants import APP_NAME
from llenergymeasure.core.gpu.driver import GpuDriverError
from llenergymeasure.core.host.docker import ANSWER_TIMEOUT_S, Image, explain, find_image, other_release
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.host.marker import shared_marker
from llenergymeasure.core.model.source import client_home
from llenergymeasure.core.preflight import Failure, output_findings
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import DockerError, LLEMError, PreFlightError
from llenergymeasure.runners.child import DIRECTORY_VARIABLE
from llenergymeasure.runners.env_file import EnvFile
from llenergymeasure.runners.isolated import ProcessLauncher, asked_in_groups
from llenergymeasure.runners.job import LOCAL_RUNNER, Job
from llenergymeasure.runners.mounts import Mount, absolute, at_their_places, named_paths
from llenergymeasure.runners.process import ChildTask, Stopwatch, describe_exit, job_options
from llenergymeasure.runners.supervise import ChildGroup

DOCKER_RUNNER: Final = "docker"
"""What stands before the colon where the user's settings name an image."""

SHM_SIZE: Final = "8g"
"""Shared memory of a container: engines pass tensors between their workers through it, and Docker gives 64 MB."""

NAME_LABEL: Final = f"{APP_NAME}.job"
"""Label of every container; its value is the job's directory."""

FILES_LABEL: Final = f"{APP_NAME}.files"
"""Another one: whose files that directory is among. One daemon may serve several who see unlike ones, such as a
machine and a process in a container with its socket (mount_namespaces(7))."""

_OF_THE_HUB: Final = ("HF_", "HUGGING", "TRANSFORMERS_", "TOKENIZERS_")
_OF_ENGINES: Final = ("VLLM_", "TRTLLM_", "TLLM_", "TORCH", "PYTORCH_", "NCCL_", "OMP_", "MKL_", "CUDA_DEVICE_ORDER")
_OF_NETWORKS: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
PASSED_ON: Final = _OF_THE_HUB + _OF_ENGINES + _OF_NETWORKS
"""Beginnings of the variables that a container gets, in capitals, where their value is no path."""

SECRETS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables whose value is nobody else's business."""

CACHES: Final = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE")
"""Variables whose value is a directory that a container shares."""

FILES: Final = ("HF_TOKEN_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables whose value is a file that a container reads: a token, the certificates behind a proxy."""

REMOVAL_TIMEOUT_S: Final = 20.0
"""How long to wait until a container is gone, in seconds."""

REMOVAL_PAUSE_S: Final = 0.2

_SIGNALLED: Final = 128
"""Exit codes above this tell the signal that ended a container."""

_DAEMON_FAILED: Final = 125
"""Exit code of the client where the daemon and not the container failed (docker-run(1))."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Container:
    """Where one job runs; see `runners.process.Place`.

    Args:
        empty: Directories that are empty, writable, and gone with it.
        variables: Environment variables by name, for those that differ from this process's.
        passed_on: Names of those that do not.
        secrets: Those that do not and are secret; `None`: there are none.
        gpus: UUIDs; empty: none.
        setting: The setting that names the image.
    """

    image: Image
    name: str
    empty: tuple[Path, ...]
    mounts: tuple[Mount, ...]
    variables: Mapping[str, str]
    passed_on: tuple[str, ...]
    secrets: EnvFile | None
    gpus: tuple[str, ...]
    setting: str

    def command(self, task: ChildTask) -> list[str]:
        """The client that starts the container and lends it its streams."""
        options = ["--name", self.name, "--shm-size", SHM_SIZE]
        options += ["--label", f"{NAME_LABEL}={task.directory.absolute()}", "--label", f"{FILES_LABEL}={_files()}"]
        options += ["--user", f"{os.getuid()}:{os.getgid()}"]
        options += [] if task.cwd is None else ["--workdir", str(task.cwd)]
        for directory in self.empty:
            options += ["--tmpfs", f"{directory}:exec,mode=1777"]
        for mount in (Mount(task.directory.absolute(), task.directory.absolute()), *self.mounts):
            options += ["--mount", mount.option()]
        for name, value in {**self.variables, DIRECTORY_VARIABLE: str(task.directory.absolute())}.items():
            options += ["--env", f"{name}={value}"]
        for name in self.passed_on:
            options += ["--env", name]
        options += [] if self.secrets is None else ["--env-file", self.secrets.path]
        options += ["--gpus", f'"device={",".join(self.gpus)}"'] if self.gpus else []
        # Kept logs would cost a disk what the job prints, a second time.
        run = ["docker", "run", "--rm", "--init", "--interactive", "--pull", "never", "--log-driver", "none"]
        job = ["-m", "llenergymeasure.runners.job", *job_options(task)[1:]]
        return [*run, *options, "--entrypoint", "python3", self.image.digest, *job]

    def clear(self) -> None:
        """Remove the container, if there still is one, and those of earlier jobs that never started."""
        stopwatch = Stopwatch()
        while (problem := self._removed()) is not None and stopwatch.elapsed_s() < REMOVAL_TIMEOUT_S:
            time.sleep(REMOVAL_PAUSE_S)  # the daemon is at it
        if problem is None:
            _remove_unstarted()
        else:
            _log.warning("The container %s may be left: %s", self.name, problem)

    def _removed(self) -> str | None:
        """Remove the container; `None` when it is gone, else why it may not be."""
        try:
            answer = _client("rm", "--force", "--volumes", self.name)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        gone = answer.returncode == 0 or "no such container" in answer.stderr.lower()
        return None if gone else explain(answer.stderr)

    def refusal(self, exit_code: int | None, output: str) -> LLEMError | None:
        """That no job began in it: the daemon refused, or what is in the image did not get that far."""
        ended_by_itself = exit_code is not None and 0 <= exit_code <= _SIGNALLED
        reason = explain(output) if ended_by_itself else self.describe_exit(exit_code)
        return PreFlightError([f"{self.setting}: no job began in its container: {reason}"])

    def other_release(self, version: str) -> str:
        """As of an image whose label says so."""
        return f"{self.setting}: {other_release(self.image.name, version)}"

    def describe_exit(self, exit_code: int | None) -> str:
        """Why the client ended: as the container did, by a signal of its own, or because the daemon left it."""
        if exit_code is None:
            return describe_exit(exit_code)
        who = "the Docker client" if exit_code < 0 or exit_code == _DAEMON_FAILED else "its container"
        return f"{who}: {describe_exit(_SIGNALLED - exit_code if exit_code > _SIGNALLED else exit_code)}"


def _remove_unstarted() -> None:
    """Remove containers that the daemon made for a client which was killed meanwhile, when their job is over."""
    shown = f'{{{{.ID}}}} {{{{json (.Label "{NAME_LABEL}")}}}}'
    chosen = ["--all", "--filter", f"label={FILES_LABEL}={_files()}", "--filter", "status=created"]
    try:
        rows = [row.partition(" ") for row in _client("ps", *chosen, "--format", shown).stdout.splitlines()]
        if left := [name for name, _, directory in rows if _is_gone(json.loads(directory))]:
            _client("rm", "--volumes", *left)  # without --force: one that runs is somebody's
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        _log.warning("Containers that never started may be left: %s", error)


def _files() -> str:
    """Identity of the files that this process sees."""
    return os.readlink("/proc/self/ns/mnt")


def _is_gone(directory: str) -> bool:
    """Whether there is no such directory."""
    try:
        os.stat(directory)
    except OSError as error:
        return isinstance(error, FileNotFoundError)  # another user's may be one that cannot be looked at
    return False


def _client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ANSWER_TIMEOUT_S)


class DockerLauncher(ProcessLauncher):
    """Runs each job in a container of the image that the user's settings name for its backend."""

    def failures(self, configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[list[str]]:
        """See `Launcher.failures`; a container of the very kind that would run them is asked."""

        def ask(alike: list[ExperimentConfig]) -> list[list[str]]:
            try:
                inside = super(DockerLauncher, self).failures(alike, machine)
            except PreFlightError as error:
                inside = [list(error.failures)] * len(alike)
            return [[*found, *_no_output(config)] for config, found in zip(alike, inside, strict=True)]

        return asked_in_groups(configs, lambda config: (config.backend, _gpus(config, Host())), ask)

    def _task(self, directory: Path, configs: Sequence[ExperimentConfig], machine: UserConfig, entry: str) -> ChildTask:
        task = super()._task(directory, configs, machine, entry)
        return replace(task, place=container_for(configs, machine, Host()))

    def _group(self, job: Job) -> ChildGroup:
        if failures := _no_output(job.config):
            raise PreFlightError(failures)
        return super()._group(job)

    def _config_there(self, config: ExperimentConfig) -> ExperimentConfig:
        return config.model_copy(update={"output_dir": None})  # nobody in a container can see whether it will do

    def _machine_there(self, machine: UserConfig, backend: str) -> UserConfig:
        runners = machine.runners.model_copy(update={backend: LOCAL_RUNNER})
        return machine.model_copy(update={"runners": runners})

    def _told(self, result: ExperimentResult, job: Job, task: ChildTask) -> ExperimentResult:
        digest = task.place.image.digest if isinstance(task.place, Container) else None
        runner = job.machine.runners.of(job.config.backend)
        return result.model_copy(update={"runner": runner, "image_digest": digest})


def container_for(configs: Sequence[ExperimentConfig], machine: UserConfig, host: Host) -> Container:
    """The container that can run these configurations, of one backend and on the same devices.

    Raises:
        PreFlightError: Their image cannot be used here.
    """
    backend = configs[0].backend
    setting = _setting(machine, backend)
    try:
        image = find_image(machine.runners.of(backend).partition(":")[2], host.environ)
    except DockerError as error:
        raise PreFlightError([f"{setting}: {error}"]) from error
    home = _home()
    own_cache = absolute(platformdirs.user_cache_dir(APP_NAME))
    hub = absolute(client_home(host.environ))
    calibrations = absolute(host.calibration_dir)
    cache_places, file_places = (
        {name: absolute(host.environ[name]) for name in names if host.environ.get(name)} for names in (CACHES, FILES)
    )
    variables = {
        "HOME": str(home),
        "USER": "llem",  # a user id without an entry in passwd has no name, and libraries ask for one
        "HF_HOME": str(hub),
        "XDG_CACHE_HOME": str(own_cache.parent),
        "XDG_DATA_HOME": str(calibrations.parent.parent),
        "PYTHONSAFEPATH": "1",  # no module is taken from the current directory
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",  # utility: NVML, which measures
        **{name: str(path) for name, path in {**cache_places, **file_places}.items()},
    }
    secrets = {name: host.environ[name] for name in SECRETS if host.environ.get(name)}
    caches = [own_cache, hub, absolute(machine.output.model_cache_dir), *cache_places.values()]
    marker = shared_marker()
    mounts = (
        *at_their_places(caches, [*file_places.values(), calibrations, *named_paths(configs)], home),
        *([] if marker is None else [Mount(marker, Path("/tmp") / marker.name)]),
    )
    own = () if os.getuid() == 0 else dict.fromkeys((home, own_cache.parent))  # root has a home in images
    targets = {mount.target for mount in mounts}
    return Container(
        image=image,
        name=f"llem-{os.getpid()}-{uuid.uuid4().hex[:12]}",
        empty=tuple(path for path in own if path not in targets),
        mounts=mounts,
        variables=variables,
        passed_on=tuple(sorted(set(passed_on(host.environ)) - {*variables, *secrets})),
        secrets=EnvFile(secrets) if secrets else None,
        gpus=_gpus(configs[0], host),
        setting=setting,
    )


def passed_on(environ: Mapping[str, str]) -> Iterator[str]:
    """Names of the variables that say something to engines and to the Hub, and nothing about places here."""
    for name, value in environ.items():
        if name.upper().startswith(PASSED_ON) and name not in CACHES + FILES and not value.startswith(("/", "~")):
            yield name


def _no_output(config: ExperimentConfig) -> list[str]:
    """Why results cannot be kept where they are wanted."""
    findings = () if config.output_dir is None else output_findings(config.output_dir, Host())
    return [finding.text for finding in findings if isinstance(finding, Failure)]


def _gpus(config: ExperimentConfig, host: Host) -> tuple[str, ...]:
    """UUIDs of the GPUs that an experiment would use, told without an engine; none where there are none."""
    section = config.backend_config
    if section.device_choice == "cpu":
        return ()
    try:
        gpus = host.visible_gpus()
    except GpuDriverError:
        return ()
    return tuple(gpu.uuid for gpu in gpus[: section.gpu_count(len(gpus))])


def _home() -> Path:
    home = Path(os.path.expanduser("~"))
    return home if home.is_absolute() and len(home.parts) > 1 else Path(tempfile.gettempdir()) / "llem-home"


def _setting(machine: UserConfig, backend: str) -> str:
    return f"runners.{backend}: {machine.runners.of(backend)}"
