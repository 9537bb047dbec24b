"""One daemon and its images for all tests of this directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.docker.daemon import Daemon, running_daemon, why_not
from tests.docker.image import build_image

TESTS = Path(__file__).parents[1]
IN_CONTAINER = Path(__file__).with_name("in_container.py")
SCRIPTS = ("children.py", "study_children.py", "study_fakes.py", "fakes.py", "result_samples.py")
"""Experiments of other tests."""


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that gives no GPUs to containers."""
    if (reason := why_not()) is not None:
        (pytest.fail if "dockerd" in os.environ.get("LLEM_TEST_REQUIRE", "") else pytest.skip)(reason)
    with running_daemon(tmp_path_factory.mktemp("docker")) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_container_is_left(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The daemon is everybody's, and after each test there is no container on it."""
    monkeypatch.setenv("DOCKER_HOST", daemon.address)
    yield
    assert daemon.containers() == []


@pytest.fixture(scope="session")
def plain_image(daemon: Daemon) -> str:
    """An image without any engine, and with the experiments of tests that measure nothing."""
    return made(daemon, "llem-test/plain:1", **plain_content())


@pytest.fixture(scope="session")
def torch_image(daemon: Daemon) -> str:
    """An image with the pytorch engine."""
    pytest.importorskip("torch")
    return made(daemon, "llem-test/torch:1", extras=("pytorch",))


def plain_content() -> dict[str, Any]:
    """What is in the plain image besides this package."""
    more = {f"opt/site/{name}": TESTS / name for name in SCRIPTS}
    return {"packages": ("hypothesis",), "more": {**more, "opt/site/in_container.py": IN_CONTAINER}}


def made(daemon: Daemon, tag: str, further: Mapping[str, Path] | None = None, **how: Any) -> str:
    """Make an image on a daemon; returns its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", daemon.address)
        build_image(tag, **{**how, "more": {**how.get("more", {}), **(further or {})}})
    return tag
