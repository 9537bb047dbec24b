"""One daemon and its images for all tests of this directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docker.daemon import Daemon, running_daemon, why_not
from tests.docker.image import build_image

TESTS = Path(__file__).parents[1]
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
    more = {f"opt/site/{name}": TESTS / name for name in SCRIPTS}
    more["opt/site/in_container.py"] = TESTS / "docker" / "in_container.py"
    return _made(daemon, "llem-test/plain:1", packages=("hypothesis",), more=more)


@pytest.fixture(scope="session")
def torch_image(daemon: Daemon) -> str:
    """An image with the pytorch engine."""
    pytest.importorskip("torch")
    return _made(daemon, "llem-test/torch:1", extras=("pytorch",))


def _made(daemon: Daemon, tag: str, **how: object) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", daemon.address)
        build_image(tag, **how)  # type: ignore[arg-type]
    return tag
