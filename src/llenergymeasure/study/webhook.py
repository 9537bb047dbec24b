"""Telling a web server how a study ended: at most a few seconds, whatever the server does, and no secret in a log.

The request is made by a process of its own, which is killed when the time is up: name servers that do not answer and
servers that answer byte by byte have no other end. The HTTP library logs there to nobody.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

from llenergymeasure.domain.study import StudyResult
from llenergymeasure.resilience import retry_on_error

POST_LIMIT_S: Final = 20.0
"""How long the end of a study may take for it, all attempts together, in seconds."""

POST_RETRIES: Final = 2

_BOOT: Final = (
    f"import sys; sys.path[:] = sys.argv.pop(1).split({os.pathsep!r}); "
    "from llenergymeasure.study.webhook import post_from_stdin; post_from_stdin()"
)

_log = logging.getLogger(__name__)


def send_summary(
    url: str,
    result: StudyResult,
    *,
    status: str,
    post: Callable[[str, bytes], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    limit_s: float = POST_LIMIT_S,
) -> bool:
    """POST a study's result as JSON, `{"event": "study", "status": …, "study": …}`.

    Args:
        url: Where to; it may hold a secret, so only its host is ever logged.
        status: How it ended: `completed`, `failed`.
        post: Sends a body to a URL, and is tried again when the connection fails; `None`: over HTTP.
        sleep: Waits before that, for a number of seconds.
        limit_s: How long all attempts over HTTP may take together, in seconds.

    Returns:
        Whether it arrived. Nothing is raised: the study is over and on disk.
    """
    host = urlsplit(url).hostname or "the webhook"
    message = {"event": "study", "status": status, "study": result.model_dump(mode="json")}
    end_s = time.monotonic() + limit_s

    def in_time(url: str, body: bytes) -> None:
        _post(url, body, end_s - time.monotonic())

    retrying = retry_on_error(POST_RETRIES, sleep=sleep, what=f"sending the summary to {host}")
    try:
        retrying(post or in_time)(url, json.dumps(message, ensure_ascii=False).encode())
    except Exception as error:  # noqa: BLE001 (whatever a far server does, the study has succeeded)
        reason = str(error) if post is None else _without_secrets(error, url)
        _log.warning("The study's summary did not reach %s: %s", host, reason)
        return False
    _log.info("Sent the study's summary to %s", host)
    return True


def _post(url: str, body: bytes, limit_s: float) -> None:
    """Send `body` to `url`.

    Raises:
        ConnectionError: The connection failed, or the server is in trouble: another attempt may help.
        OSError: It was refused, or the time is up.
    """
    command = [sys.executable, "-c", _BOOT, os.pathsep.join(map(str, sys.path))]
    try:
        done = subprocess.run(
            command, input=url.encode() + b"\n" + body, capture_output=True, timeout=max(limit_s, 0), check=False
        )
    except subprocess.TimeoutExpired:  # its text has the command, and no more
        raise OSError("the time for it is up") from None
    answer = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        raise ConnectionError(answer or "the process that was to send it failed")
    if not answer.isdecimal():
        raise OSError(answer)
    code = int(answer)
    if code >= 500:
        raise ConnectionError(f"the server answered {code}")
    if not 200 <= code < 300:
        redirect = ", a redirect, which is not followed: set output.webhook_url to where it leads" if code < 400 else ""
        raise OSError(f"the server answered {code}{redirect}")


def post_from_stdin() -> None:
    """Send what stands in stdin after its first line to the URL in that line; prints the status, and reads no more.

    Prints why not where there is no status, with exit code 1 if another attempt may help.
    """
    url, body = sys.stdin.buffer.readline().decode().strip(), sys.stdin.buffer.read()
    try:
        import httpx
    except ImportError:
        sys.stdout.write('httpx is not installed; install it with: pip install "llenergymeasure[webhooks]"')
        return
    headers = {"Content-Type": "application/json"}
    try:
        with httpx.stream("POST", url, content=body, headers=headers, timeout=POST_LIMIT_S) as answer:
            sys.stdout.write(str(answer.status_code))
            sys.stdout.flush()
            os._exit(0)  # a body that has no end is not waited for
    except httpx.TransportError as error:
        sys.stdout.write(_without_secrets(error, url))
        sys.exit(1)


def _without_secrets(error: Exception, url: str) -> str:
    """What an error says, or only its kind where it repeats a part of the URL that may be secret."""
    text, parts = f"{type(error).__name__}: {error}", urlsplit(url)
    values = [pair.rpartition("=")[2] for pair in parts.query.split("&")]
    secrets = [parts.username, parts.password, parts.path.strip("/"), *parts.path.split("/"), parts.query, *values]
    named = [secret for secret in secrets if secret]
    return type(error).__name__ if any(s in text or unquote(s) in text for s in named) else text
