"""A model's `config.json` from the Hugging Face Hub: a few kilobytes, without the Hub's client, kept nowhere.

For previews on a machine that has neither the model nor an engine; what runs is fetched by the engine's own loader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from llenergymeasure.constants import VERSION

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 1_000_000
"""Far more than any configuration has."""

_MODEL_ID: Final = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
_ANSWERS: Final = {
    401: "it does not exist, or is gated or private: set HF_TOKEN",
    403: "it is gated: accept its terms there and set HF_TOKEN",
    404: "it has no such model, revision or config.json",
}


class HubConfigError(Exception):
    """The Hub does not give the configuration; says why."""


FetchConfig = Callable[[str, str | None], Mapping[str, Any]]
"""Gives the `config.json` of a model at a revision, or raises `HubConfigError`."""


def fetch_model_config(model: str, revision: str | None, environ: Mapping[str, str]) -> Mapping[str, Any]:
    """Ask the Hub for a model's configuration, once and briefly: a preview does not wait for a network that is down.

    Args:
        model: Id on the Hub.
        revision: Branch, tag or commit; `None`: the Hub's default.
        environ: Says where the Hub is (`HF_ENDPOINT`), with which token (`HF_TOKEN`), and whether it may be asked
            (`HF_HUB_OFFLINE`), as for the Hub's own client.

    Raises:
        HubConfigError: It may not be asked, does not answer, or has no such thing.
    """
    if environ.get("HF_HUB_OFFLINE", "").lower() not in _OFF:
        raise HubConfigError("HF_HUB_OFFLINE forbids asking the Hub")
    if _MODEL_ID.fullmatch(model) is None:
        raise HubConfigError("it is not an id on the Hub")
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    endpoint = environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    address = f"{endpoint.rstrip('/')}/{model}/raw/{quote(revision or 'main', safe='')}/config.json"
    try:
        request = Request(address, headers={"User-Agent": f"llenergymeasure/{VERSION}"})
        if (token := _token(environ)) is not None:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            content = json.loads(answer.read(MAX_BYTES))
    except HTTPError as error:
        raise HubConfigError(f"the Hub says {_ANSWERS.get(error.code, f'HTTP status {error.code}')}") from error
    except (OSError, HTTPException, ValueError) as error:  # no network, no HTTP, no JSON, no URL
        raise HubConfigError(f"the Hub cannot be asked ({getattr(error, 'reason', None) or error})") from error
    if not isinstance(content, dict):
        raise HubConfigError("the Hub's config.json is no mapping")
    return content


def _token(environ: Mapping[str, str]) -> str | None:
    """The user's token, from where the Hub's client takes it."""
    if environ.get("HF_TOKEN"):
        return environ["HF_TOKEN"].strip()
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    try:
        return Path(environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser().read_text().strip() or None
    except (OSError, ValueError, RuntimeError):
        return None
