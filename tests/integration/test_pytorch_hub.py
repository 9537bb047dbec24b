"""Finding models on a Hub that answers like the real one, and in its cache; the client is the real one."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")

from llenergymeasure.core.model.source import find_model, hub_cache_dir  # noqa: E402
from llenergymeasure.exceptions import BackendError  # noqa: E402
from pytorch_models import save_model  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = json.dumps({"model_type": "llama"}).encode()


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers `/<owner>/<name>/resolve/<revision>/<file>` by the owner's name."""

    failures_left = 0
    seen: list[str]

    def do_HEAD(self) -> None:
        _, owner, name, _, revision, *_ = self.path.split("/")
        type(self).seen.append("/".join((owner, name)))
        if type(self).failures_left > 0:
            type(self).failures_left -= 1
            self._answer(503)
        elif owner == "gated":
            self._answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."})
        elif owner == "missing":
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif owner == "gguf":
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self._answer(200, {"X-Repo-Commit": COMMIT, "ETag": '"abc"', "Content-Length": str(len(CONFIG))})

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONFIG)

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this one is on this machine
    FakeHub.failures_left, FakeHub.seen = 0, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    download = functools.partial(huggingface_hub.hf_hub_download, endpoint=endpoint)
    yield functools.partial(find_model, cache_home=tmp_path / "hf", download=download, sleep=lambda seconds: None)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_on_the_hub_is_pinned_to_the_commit_it_had_when_asked(hub: Any, tmp_path: Path) -> None:
    source = hub("owner/name", None)
    assert source.location == "owner/name"
    assert source.revision == COMMIT
    assert source.config == {"model_type": "llama"}
    assert source.loader_arguments == {"revision": COMMIT, "cache_dir": str(tmp_path / "hf" / "hub")}


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("gated/model", None, "gated/model is gated. Accept its terms on the Hub and set HF_TOKEN"),
        ("missing/model", None, "missing/model is neither a directory here nor on the Hub"),
        ("owner/name", "v9", "owner/name has no revision 'v9'"),
        ("gguf/model", None, "gguf/model is on the Hub but has no config.json"),
        ("no spaces allowed/model", None, "neither a directory here nor an id of the form owner/name"),
    ],
)
def test_what_the_hub_refuses_is_told_with_its_fix(hub: Any, model: str, revision: str | None, message: str) -> None:
    with pytest.raises(BackendError, match=f"^model: .*{message}"):
        hub(model, revision)


def test_a_refusal_is_not_asked_for_again(hub: Any) -> None:
    with pytest.raises(BackendError):
        hub("missing/model", None)
    assert len(FakeHub.seen) == 1


def test_an_overloaded_hub_is_asked_again(hub: Any) -> None:
    FakeHub.failures_left = 2
    assert hub("owner/name", None).revision == COMMIT


def test_a_hub_that_stays_away_is_tried_once_more_and_told_as_such(tmp_path: Path) -> None:
    def unreachable(repo_id: str, filename: str, **_: Any) -> str:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except ConnectionRefusedError as error:  # as the client does, once its own attempts are used up
            raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the file in the cache") from error

    pauses: list[float] = []
    with pytest.raises(BackendError, match="cannot be fetched from the Hub now and is not in the local cache"):
        find_model("owner/name", None, cache_home=tmp_path, download=unreachable, sleep=pauses.append)
    assert pauses == [1.0]


def test_a_path_is_never_looked_for_on_the_hub(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no such directory"):
        hub(str(tmp_path / "gone"), None)
    with pytest.raises(BackendError, match="no such directory"):
        hub("./gone", None)
    assert FakeHub.seen == []


def test_the_clients_own_default_is_left_to_the_client(tmp_path: Path) -> None:
    assert hub_cache_dir(None) is None
    assert hub_cache_dir(Path("~/.cache/huggingface")) is None  # naming it would override HF_HOME
    assert hub_cache_dir(tmp_path) == str(tmp_path / "hub")


def cached(directory: Path) -> Path:
    """A home of the Hub's client that holds `owner/name`, all of it; returns it."""
    repository = directory / "home" / "hub" / "models--owner--name"
    shutil.copytree(save_model(directory / "saved"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return directory / "home"


def connection_refused(address: str, timeout: float) -> None:
    raise ConnectionRefusedError(111, "Connection refused")


def test_a_cached_model_is_taken_from_its_directory_where_the_hub_cannot_be_asked(tmp_path: Path) -> None:
    source = find_model("owner/name", None, cache_home=cached(tmp_path), ask=connection_refused)
    assert source.location == str(tmp_path / "home" / "hub" / "models--owner--name" / "snapshots" / COMMIT)
    assert (source.revision, source.loader_arguments) == (COMMIT, {})


def test_a_cached_model_is_asked_for_where_the_hub_answers(hub: Any, tmp_path: Path) -> None:
    cached(tmp_path).rename(tmp_path / "hf")
    source = hub("owner/name", None, ask=lambda address, timeout: None)
    assert source.location == "owner/name"
    assert source.loader_arguments == {"revision": COMMIT, "cache_dir": str(tmp_path / "hf" / "hub")}


def test_a_refusal_is_an_answer(hub: Any, tmp_path: Path) -> None:
    class RefusalError(ConnectionError):
        response = "403"

    def refuse(address: str, timeout: float) -> None:
        raise RefusalError

    cached(tmp_path).rename(tmp_path / "hf")
    assert hub("owner/name", None, ask=refuse).location == "owner/name"


@pytest.mark.parametrize(
    ("offline", "reason"),
    [
        (
            {"HF_HUB_OFFLINE": "1"},
            "is not in the local cache, and HF_HUB_OFFLINE forbids asking the Hub. Unset it once to fetch it.",
        ),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, None),  # nobody listens there
    ],
    ids=["forbidden", "cut off"],
)
def test_a_cached_model_runs_offline_at_its_commit_and_an_uncached_one_says_why_not(
    tmp_path: Path, offline: dict[str, str], reason: str | None
) -> None:
    cached(tmp_path)
    code = """
import json, sys
from pathlib import Path
from llenergymeasure.core.backends.registry import get_backend
from pytorch_models import experiment, ids, requests
engine = get_backend("pytorch", model_cache_dir=Path(sys.argv[1]))
config = experiment("owner/name")
problems = list(engine.preflight(config))
engine.load(config)
tokens = ids(engine.generate(requests("ab", limits=[2])))
elsewhere = list(get_backend("pytorch").preflight(config)) if sys.argv[2] else []
print(json.dumps([problems, engine.describe().revision, len(tokens[0]), elsewhere]))
"""
    environment = {
        **offline,
        "HF_HOME": str(tmp_path / "empty"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-c", code, str(tmp_path / "home"), reason or ""]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        [],
        COMMIT,
        2,
        [f"model: owner/name {reason}"] if reason is not None else [],
    ]
