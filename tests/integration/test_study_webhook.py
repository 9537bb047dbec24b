from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.webhook import send_summary
from study_fakes import Stage, study_of


class Server(HTTPServer):
    """Keeps what is posted to it and answers as told."""

    received: list[dict[str, object]]
    answers: list[int]

    @property
    def url(self) -> str:
        return f"http://user:secretword@127.0.0.1:{self.server_port}/hook/secretpath?token=secret"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        code = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(code)
        if 300 <= code < 400:
            self.send_header("Location", "/elsewhere")
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


class Unfriendly:
    """A server that does with a connection what it is told to; `connections` counts them."""

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook?token=secret"
        self.connections = 0
        self._act = act
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection, contextlib.suppress(OSError):
                    self._act(connection)

    def close(self) -> None:
        self._listener.close()


def trickle(connection: socket.socket) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n" + b"X: y\r\n" * 1000:
        connection.send(bytes([byte]))
        time.sleep(0.02)


def flood(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def flood_headers(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"y" * 65_536)


@pytest.mark.parametrize(("act", "arrives"), [(trickle, False), (flood, True), (flood_headers, False)])
def test_no_server_holds_the_end_of_a_study(
    act: Callable[[socket.socket], None], arrives: bool, result: StudyResult, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("httpx")
    server = Unfriendly(act)
    with caplog.at_level(logging.DEBUG):
        limit_s = 1.5 if act is trickle else 30.0
        assert send_summary(server.url, result, status="completed", limit_s=limit_s, sleep=lambda s: None) is arrives
    server.close()
    assert "secret" not in caplog.text
    if act is trickle:
        assert "the time for it is up" in caplog.text
        assert server.connections <= 1  # it is not asked again; a busy machine may not get there in time at all


@pytest.mark.parametrize("code", [302, 308])
def test_a_redirect_is_not_arrival_and_is_not_followed(
    server: Server, result: StudyResult, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    server.answers = [code]
    assert not send_summary(server.url, result, status="completed")
    assert len(server.received) == 1
    assert f"answered {code}, a redirect" in caplog.text


def test_nobody_logs_the_secret_of_the_address(
    server: Server, result: StudyResult, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert send_summary(server.url, result, status="completed")
        server.answers = [503]
        assert send_summary(server.url, result, status="completed", sleep=lambda s: None)
        assert not send_summary("ftp://u:secret@127.0.0.1/secret", result, status="completed", sleep=lambda s: None)

        def indiscreet(url: str, body: bytes) -> None:
            raise OSError(f"no route to {url}")

        assert not send_summary(server.url, result, status="completed", post=indiscreet)
    assert "127.0.0.1" in caplog.text
    assert "secret" not in caplog.text
