"""The Docker daemon, asked through its client: whether it is there, what an image is, and what its errors mean."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.constants import APP_NAME, VERSION
from llenergymeasure.exceptions import DockerError

ANSWER_TIMEOUT_S: Final = 10.0
"""Longest wait for an answer about the daemon or an image, in seconds."""

VERSION_LABEL: Final = f"{APP_NAME}.version"
"""Label of an image that tells which release is in it."""

CUDA_MAJOR: Final = 13
"""What the engines' releases of today are built with."""

_BEGINNINGS: Final = re.compile(r"^(docker: )?(Error response from daemon: )?(\[FATAL tini \(\d+\)\] )?")
"""Who says it, in the client's words; the number of the container's first process is another each time."""

_NOT_OURS: Final = (
    "Take a daemon that sees this machine's files and users: neither a remote nor a rootless one, nor one with "
    "userns-remap (docker context ls; DOCKER_HOST)."
)

_MEANINGS: Final = (
    ("permission denied", "Join its group, then log in anew: sudo usermod -aG docker $USER"),
    ("could not select device driver", "Install the NVIDIA Container Toolkit, then restart Docker."),
    ("no space left on device", "Docker's disk is full. Make room: docker system prune"),
    ("no module named", f"Take an image whose python3 has {APP_NAME} {VERSION}."),
    ("bind source path does not exist", _NOT_OURS),
    ("cannot use its directory", _NOT_OURS),
    ("docker daemon", "Start it: sudo systemctl start docker"),
)
"""What to do about an error, by words that its line has; the first that fits."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is on this machine.

    Args:
        name: What it was asked for by.
        digest: Of its content (`sha256:…`).
        version: Release of this package in it, as its label says; `None`: it has no such label.
    """

    name: str
    digest: str
    version: str | None


def default_image(backend: str) -> str:
    """What `docker/build` calls the image of a backend."""
    return f"{APP_NAME}/{backend}:{VERSION}-cuda{CUDA_MAJOR}"


def docker_version(environ: Mapping[str, str]) -> str:
    """Version of the Docker daemon, asked of the daemon itself.

    Raises:
        DockerError: There is no client, or no daemon answers it; says what to do.
    """
    return _ask(["version", "--format", "{{.Server.Version}}"], environ)


def find_image(name: str, environ: Mapping[str, str]) -> Image:
    """The image `name`, if it can run jobs of this release. It is never fetched: that is its user's to decide.

    Raises:
        DockerError: It is not on this machine, has another release in it, or the daemon does not answer.
    """
    try:
        (found,) = json.loads(_ask(["image", "inspect", name], environ))
        labels = found["Config"]["Labels"] or {}
        image = Image(name, found["Id"], labels.get(VERSION_LABEL))
    except DockerError as error:
        if "no such image" in str(error).lower():
            raise DockerError(f"there is no image {name} on this machine. {how_to_get(name)}") from error
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DockerError(f"the Docker client tells nothing of the image {name} that can be read: {error!r}") from error
    if image.version not in (None, VERSION):
        raise DockerError(other_release(name, image.version))
    return image


def other_release(name: str, version: str) -> str:
    """That an image has another release in it, and how to get one that has this."""
    return f"the image {name} has {APP_NAME} {version}, and this is {VERSION}. Make it anew. {how_to_get(name)}"


def how_to_get(name: str) -> str:
    """The command that makes an image, where it is one of ours, or else fetches it."""
    repository, _, tag = name.partition(":")
    owner, _, backend = repository.partition("/")
    if owner == APP_NAME and backend in BACKENDS:
        kind = "cpu" if tag.endswith("-cpu") else backend
        return f"Build it, in a checkout of {APP_NAME} {VERSION}: docker/build {kind}"
    return f"Fetch it: docker pull {name}"


def explain(text: str) -> str:
    """What the client wrote about an error, in one line, with what to do where that is known."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "--help" not in line]
    said = next((line for line in reversed(lines) if line.startswith("docker: ")), lines[-1] if lines else "")
    reason = _BEGINNINGS.sub("", said).rstrip(".") or "no reason given"
    advice = next((advice for words, advice in _MEANINGS if words in reason.lower()), "")
    return f"{reason}{'' if reason.endswith('?') else '.'} {advice}".strip()


def _ask(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    command = ["docker", *arguments]
    limit_s = ANSWER_TIMEOUT_S
    try:
        answer = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, errors="replace", timeout=limit_s
        )
    except FileNotFoundError as error:
        raise DockerError("Docker is not installed. See https://docs.docker.com/engine/install/") from error
    except OSError as error:
        raise DockerError(f"the Docker client cannot be started: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise DockerError(f"the Docker daemon did not answer within {limit_s:g} s. Restart it.") from error
    if answer.returncode != 0 or not answer.stdout.strip():
        raise DockerError(f"the Docker daemon: {explain(answer.stderr)}")
    return answer.stdout.strip()
