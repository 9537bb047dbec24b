"""A model's configuration asked of a Hub that answers like the real one."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.core.model.source import HubConfigError, fetch_model_config

CONFIG = {"model_type": "llama", "hidden_size": 64}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers `/<owner>/<name>/raw/<revision>/config.json` by the owner's name, and remembers who asked for what."""

    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        type(self).asked.append((self.path, self.headers.get("Authorization")))
        owner = self.path.split("/")[1]
        if owner == "moved":
            self.send_response(302)
            self.send_header("Location", self.path.replace("moved", "owner"))
            self.end_headers()
            return
        content = {"list": b"[]", "broken": b"{"}.get(owner, json.dumps(CONFIG).encode())
        self.send_response({"gated": 403, "missing": 404, "private": 401, "busy": 503}.get(owner, 200))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment that names a Hub in this process."""
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}/", "HF_HOME": str(tmp_path)}
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_configuration_is_that_of_the_revision(environ: dict[str, str]) -> None:
    assert fetch_model_config("owner/name", None, environ) == CONFIG
    assert fetch_model_config("owner/name", "refs/pr/1", environ) == CONFIG
    assert fetch_model_config("gpt2", "v1", environ) == CONFIG
    assert [path for path, _ in Hub.asked] == [
        "/owner/name/raw/main/config.json",
        "/owner/name/raw/refs%2Fpr%2F1/config.json",
        "/gpt2/raw/v1/config.json",
    ]


def test_the_users_token_is_sent_and_goes_no_further(environ: dict[str, str], tmp_path: Path) -> None:
    fetch_model_config("owner/name", None, environ)
    (tmp_path / "token").write_text("from-file\n")
    fetch_model_config("owner/name", None, environ)
    fetch_model_config("moved/name", None, {**environ, "HF_TOKEN": "from-variable"})
    assert [token for _, token in Hub.asked] == [None, "Bearer from-file", "Bearer from-variable", None]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("gated/model", "gated.* HF_TOKEN"),
        ("private/model", "HF_TOKEN"),
        ("missing/model", "no such model"),
        ("busy/model", "HTTP status 503"),
        ("broken/model", "cannot be asked"),
        ("list/model", "no mapping"),
        ("./somewhere", "not an id"),
        ("/some/where", "not an id"),
        ("a b/c", "not an id"),
        ("owner/name/more", "not an id"),
    ],
)
def test_a_refusal_is_told(environ: dict[str, str], model: str, reason: str) -> None:
    with pytest.raises(HubConfigError, match=reason):
        fetch_model_config(model, None, environ)


def test_nobody_is_asked_offline(environ: dict[str, str]) -> None:
    with pytest.raises(HubConfigError, match="HF_HUB_OFFLINE forbids"):
        fetch_model_config("owner/name", None, {**environ, "HF_HUB_OFFLINE": "1"})
    assert Hub.asked == []


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nonsense", "http://[bad"])
def test_a_hub_that_is_not_there_is_told(endpoint: str) -> None:
    with pytest.raises(HubConfigError, match="cannot be asked"):
        fetch_model_config("owner/name", None, {"HF_ENDPOINT": endpoint})
