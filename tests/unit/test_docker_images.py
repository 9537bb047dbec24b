"""How images are built: nothing of an engine's own image is replaced, and each kind has its name."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llenergymeasure.core.host.docker import default_image

ROOT = Path(__file__).parents[2]


def test_what_is_installed_stays_and_what_is_new_comes_pinned() -> None:
    held: Callable[[str, dict[str, str]], list[str]] = runpy.run_path(str(ROOT / "docker" / "held.py"))["held"]
    requirements = "# pins\nNumPy==2.4.6\ntyper==0.20\nTyping_Extensions==4.16.0\n"
    installed = {"numpy": "1.26.4", "typing-extensions": "4.12.0", "vllm": "0.33.0"}
    assert held(requirements, installed) == [
        "numpy==1.26.4",
        "typing-extensions==4.12.0",
        "vllm==0.33.0",
        "typer==0.20",
    ]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `docker/build` with a client that only tells what it was asked for."""
    client = tmp_path / "docker"
    client.write_text('#!/bin/sh\necho asked: "$@"\n')
    client.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run([ROOT / "docker" / "build", *arguments], env=environ, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("backend", ["pytorch", "vllm", "tensorrt"])
def test_an_image_gets_the_name_that_pre_flight_advises(
    build: Callable[..., subprocess.CompletedProcess[str]], backend: str
) -> None:
    built = build(backend, "--no-cache")
    assert f"--tag {default_image(backend)} " in built.stdout
    assert "--label llenergymeasure.version=2.0.0" in built.stdout
    assert "--no-cache" in built.stdout
    assert built.stdout.endswith(f"export LLEM_RUNNER_{backend.upper()}=docker:{default_image(backend)}\n")


def test_the_cpu_image_is_one_of_pytorch(build: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert "--tag llenergymeasure/pytorch:2.0.0-cpu " in build("cpu").stdout


@pytest.mark.parametrize("arguments", [(), ("podman",)])
def test_a_kind_that_there_is_not_is_told_those_that_there_are(
    build: Callable[..., subprocess.CompletedProcess[str]], arguments: tuple[str, ...]
) -> None:
    refused = build(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: docker/build pytorch|vllm|tensorrt|cpu")
