"""A Docker daemon of our own: its data, its socket and its containers lie below one directory and end with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llenergymeasure.runners.docker import NAME_LABEL

START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Daemon:
    """A running daemon.

    Args:
        address: As `DOCKER_HOST` takes it.
    """

    address: str

    def containers(self) -> list[str]:
        """Ids of all containers that jobs were given, whatever became of them."""
        return self("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={NAME_LABEL}").split()

    def __call__(self, *arguments: str) -> str:
        """What the client prints."""
        answer = subprocess.run(["docker", *arguments], env=self.environ, capture_output=True, text=True, check=True)
        return answer.stdout

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": self.address}


def why_not() -> str | None:
    """Why no daemon can be started here; `None`: one can."""
    if os.geteuid() != 0:
        return "a Docker daemon needs root"
    missing = [name for name in ("dockerd", "docker") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@contextmanager
def running_daemon(directory: Path, path: str | None = None) -> Iterator[Daemon]:
    """A daemon for the length of a `with` block; the machine's network stays as it is.

    Args:
        path: Where it looks for programs; `None`: where this process does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    address, pid_file = f"unix://{directory}/socket", directory / "pid"
    command = ["dockerd", "--host", address, "--pidfile", str(pid_file), "--bridge=none", "--iptables=false"]
    command += ["--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")]
    with open(directory / "log", "wb") as log:
        environ = {**os.environ, **({} if path is None else {"PATH": path})}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)
    daemon = Daemon(address)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(["docker", "version"], env=daemon.environ, capture_output=True).returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"dockerd does not start:\n{(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield daemon
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)
        shutil.rmtree(directory / "data", ignore_errors=True)  # images are large, and pytest keeps directories
