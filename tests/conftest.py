"""What holds for every test: no look at the network or the user's own files, and no silent gap in CI."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

REQUIRED_PARTS_VARIABLE = "LLEM_TEST_REQUIRE"
"""Packages and programs, separated by commas, without which the test run must fail instead of skipping."""


_SETTING_OF_THE_USER = re.compile(
    r"(LLEM|HF|XDG|NVIDIA|DOCKER|RAY|SLURM|VLLM|TLLM|TRTLLM|TRANSFORMERS|TOKENIZERS|TORCH|CODECARBON|ZEUS|MLFLOW|TQDM"
    r"|MASTER|GITHUB)_.*|(LOCAL_)?RANK|WORLD_SIZE|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|CLICOLOR.*|CI|PYTHONWARNINGS"
)
"""Variables that would change what the product, its engines or its libraries do or say."""


hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Take signals at their word: a test run started in the background ignores Ctrl-C, and so would its children.

    Nothing set by whoever runs the tests counts, and the network is forbidden, from the start.
    """
    for name in [
        name for name in os.environ if _SETTING_OF_THE_USER.fullmatch(name) and name != REQUIRED_PARTS_VARIABLE
    ]:
        del os.environ[name]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"  # the tests' own servers
    for name, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(name) is signal.SIG_IGN:
            signal.signal(name, usual)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the Hub's library when it is imported, which may be before any test


def pytest_sessionstart(session: pytest.Session) -> None:
    """Fail at once where a part that must be tested is missing: its tests would only be skipped."""
    wanted = [name for name in os.environ.get(REQUIRED_PARTS_VARIABLE, "").split(",") if name]
    missing = [name for name in wanted if shutil.which(name) is None and importlib.util.find_spec(name) is None]
    if missing:
        pytest.exit(f"{REQUIRED_PARTS_VARIABLE}: not installed: {', '.join(missing)}", returncode=3)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what collecting has made, engines among it, out of every later garbage collection: it stays anyway."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give it back: libraries complain of what is left when the interpreter ends."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _own_surroundings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty user configuration, no network, and all boards that a test makes: a choice is for real boards."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-user-config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(_shared_cache(tmp_path_factory)))


@pytest.fixture(autouse=True, scope="module")
def _signals_left_as_found() -> Iterator[None]:
    """What a module's tests leave in this process would change those that come after it."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(name) for name in names]
    yield
    assert [signal.getsignal(name) for name in names] == before


def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole run: the built-in model is made once."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    cache.mkdir(exist_ok=True)
    return cache
