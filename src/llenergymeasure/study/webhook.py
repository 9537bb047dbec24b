"""Telling somebody that a study is over: one POST of its summary. Its failure is a warning, never the study's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from llenergymeasure.domain.study import StudyResult
from llenergymeasure.resilience import retry_on_error

TIMEOUT_S: Final = 10.0
RETRIES: Final = 2

Post = Callable[[str, bytes], None]
"""Sends JSON to a URL; raises `OSError` when the server cannot be reached or does not want it."""

_log = logging.getLogger(__name__)


def send_summary(url: str, result: StudyResult, *, status: str, post: Post | None = None) -> bool:
    """POST a study's result as JSON, `{"event": "study", "status": …, "study": …}`.

    Args:
        url: Where to; it may hold a secret, so only its host is ever logged.
        result: What the study yielded.
        status: How it ended: `completed`, `failed`.
        post: Sends it; over HTTP with a time-out by default.

    Returns:
        Whether it arrived. Nothing is raised: the study is over and on disk.
    """
    host = urlsplit(url).hostname or "the webhook"
    message = {"event": "study", "status": status, "study": result.model_dump(mode="json")}
    try:
        (post or _http_post)(url, json.dumps(message, ensure_ascii=False).encode())
    except Exception as error:  # noqa: BLE001 (whatever a far server does, the study has succeeded)
        _log.warning("The study's summary did not reach %s: %s", host, str(error).replace(url, host))
        return False
    _log.info("Sent the study's summary to %s", host)
    return True


@retry_on_error(max_retries=RETRIES, delay_seconds=1.0, exceptions=(ConnectionError, TimeoutError))
def _http_post(url: str, body: bytes) -> None:
    try:
        import httpx
    except ImportError as error:
        raise OSError('httpx is not installed; install it with: pip install "llenergymeasure[webhooks]"') from error
    try:
        answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=TIMEOUT_S)
    except httpx.TransportError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    if answer.status_code >= 500:
        raise ConnectionError(f"the server answered {answer.status_code}")
    if answer.status_code >= 400:
        raise OSError(f"the server answered {answer.status_code}")
