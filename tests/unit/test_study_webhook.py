from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.study.execute import StudyPlace, execute_study, send_summary
from study_fakes import Stage, study_of


class Server(HTTPServer):
    """Keeps what is posted to it and answers as told."""

    received: list[dict[str, object]]
    answers: list[int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?token=secret"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("httpx")
    server = Server(("127.0.0.1", 0), Handler)
    server.received, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def result(tmp_path: Path) -> StudyResult:
    return Stage(tmp_path).runner(study_of("a")).run()


def test_summary_arrives_as_json(server: Server, result: StudyResult) -> None:
    assert send_summary(server.url, result, status="completed")
    (message,) = server.received
    assert (message["event"], message["status"]) == ("study", "completed")
    assert StudyResult.model_validate_json(json.dumps(message["study"])) == result


def test_server_in_trouble_is_asked_again(server: Server, result: StudyResult) -> None:
    server.answers = [503]
    pauses_s: list[float] = []
    assert send_summary(server.url, result, status="completed", sleep=pauses_s.append)
    assert len(server.received) == 2
    assert pauses_s == [1.0]


def test_refusal_is_a_warning_without_the_secret(
    server: Server, result: StudyResult, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [404]
    with caplog.at_level(logging.WARNING):
        assert not send_summary(server.url, result, status="completed")
    assert len(server.received) == 1
    assert "the server answered 404" in caplog.text
    assert "secret" not in caplog.text


def test_failure_to_post_never_reaches_the_study(result: StudyResult) -> None:
    def broken(url: str, body: bytes) -> None:
        raise RuntimeError("anything")

    assert not send_summary("https://example.org/hook", result, status="completed", post=broken)


def test_study_posts_its_summary_when_the_user_gave_a_url(server: Server, tmp_path: Path) -> None:
    machine = UserConfig.model_validate({"output": {"webhook_url": server.url}})
    stage = Stage(tmp_path)
    result = execute_study(
        study_of("a"), StudyPlace(parent=tmp_path), machine, lambda result: None, launcher=stage.launcher
    )
    assert [message["study"]["study_id"] for message in server.received] == [result.study_id]  # type: ignore[index]
