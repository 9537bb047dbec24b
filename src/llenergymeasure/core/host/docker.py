"""Whether Docker can be used here: the client is installed and its daemon answers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Final

from llenergymeasure.exceptions import DockerError

ANSWER_TIMEOUT_S: Final = 10.0


def docker_version(environ: Mapping[str, str] | None = None) -> str:
    """Version of the Docker daemon, asked of the daemon itself.

    Args:
        environ: Environment of the client (`PATH`, `DOCKER_HOST`); this process's unless given.

    Raises:
        DockerError: There is no client, or no daemon answers it; says what to do.
    """
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    environment = dict(os.environ if environ is None else environ)
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
    except FileNotFoundError as error:
        raise DockerError("Docker is not installed. See https://docs.docker.com/engine/install/") from error
    except OSError as error:
        raise DockerError(f"the Docker client cannot be started: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise DockerError(f"the Docker daemon did not answer within {ANSWER_TIMEOUT_S:g} s. Restart it.") from error
    if answer.returncode != 0 or not answer.stdout.strip():
        reason = (answer.stderr.strip() or "no reason given").splitlines()[-1]
        raise DockerError(f"the Docker daemon cannot be reached: {reason}")
    return answer.stdout.strip()
