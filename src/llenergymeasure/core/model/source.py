"""Where a model's files are: made by this package, in a directory, in the Hub's cache, or on the Hub.

Everything that follows (tokenizer, weights, adapter) is loaded from the one commit found here, so that an update of
the repository in mid-run cannot mix two versions. Previews on a machine that has neither the model nor an engine ask
the Hub for `config.json` alone: a few kilobytes, without the Hub's client, kept nowhere.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from llenergymeasure.builtin_models.store import materialise, packaged_files
from llenergymeasure.config.models import LoRAConfig
from llenergymeasure.constants import BUILTIN_MODEL_PREFIX, VERSION
from llenergymeasure.exceptions import BackendError
from llenergymeasure.resilience import retry_on_error
from llenergymeasure.security import validate_path

T = TypeVar("T")

CONFIG_FILE: Final = "config.json"
ADAPTER_FILE: Final = "adapter_config.json"
CLIENT_HOME: Final = Path("~/.cache/huggingface")
"""Home of the Hub client's cache unless the environment says otherwise."""

HUB_TIMEOUT_S: Final = 10.0
"""How long the Hub may take to tell about one file."""

PREVIEW_TIMEOUT_S: Final = 5.0

MAX_CONFIG_BYTES: Final = 1_000_000
"""Far more than any configuration has."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model (or adapter) that was found.

    Args:
        location: What the engine's loader gets: a directory, or an id on the Hub. Of a model in the Hub's cache, its
            directory there where the Hub does not answer: loaders would ask it for every optional file, for minutes.
        revision: Commit on the Hub; `None` for a model that is not from there.
        config: Content of its configuration file.
        cache_dir: Cache that holds, or will hold, its files; `None`: the Hub client's own.
    """

    location: str
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    cache_dir: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether its location is a directory, so that nothing is asked of the Hub."""
        return self.revision is None or Path(self.location).is_absolute()

    @property
    def loader_arguments(self) -> dict[str, Any]:
        """Keyword arguments that every `from_pretrained` of this source needs."""
        if self.is_here:
            return {}
        cache = {} if self.cache_dir is None else {"cache_dir": self.cache_dir}
        return {"revision": self.revision, **cache}

    def load(self, from_pretrained: Callable[..., T], /, **arguments: Any) -> T:
        """Call a `from_pretrained` on this source; once more where it fetches from the Hub and the network fails."""
        load = from_pretrained if self.is_here else _patiently(from_pretrained, self.location)
        return load(self.location, **self.loader_arguments, **arguments)


def find_model(
    model: str,
    revision: str | None,
    *,
    cache_home: Path | None,
    what: str = "model",
    filename: str = CONFIG_FILE,
    download: Callable[..., str] | None = None,
    ask: Callable[..., object] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> ModelSource:
    """Find a model's configuration, and with it the place and commit of everything else.

    Args:
        model: `builtin/<name>`, a directory, or an id on the Hub.
        revision: Branch, tag or commit on the Hub.
        cache_home: The Hub client's home directory (`HF_HOME`); `None` leaves it to the client.
        what: What it is to the reader of an error: `model`, `lora.adapter_id`.
        download: Fetches from the Hub; `None`: `huggingface_hub.hf_hub_download`.
        ask: Asks the Hub about the file at an address; `None`: `huggingface_hub.get_hf_file_metadata`.

    Raises:
        BackendError: It does not exist, is gated, is not a model, or cannot be reached now.
        ConfigError: There is no built-in model of that name.
    """
    if model.startswith(BUILTIN_MODEL_PREFIX):
        return _in_directory(materialise(model), what, filename)
    looks_like_a_path = model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    if looks_like_a_path or Path(model).expanduser().is_dir():
        return _in_directory(Path(model), what, filename)
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    cache_dir = hub_cache_dir(cache_home)
    kept = model_directory(model, revision, os.environ, cache_home, filename)
    if kept is not None:
        address = hf_hub_url(model, filename, revision=revision)
        if _is_cut_off(lambda: (ask or get_hf_file_metadata)(address, timeout=PREVIEW_TIMEOUT_S)):
            return ModelSource(str(kept.absolute()), revision=kept.name, config=read_config(kept / filename, what))
    fetch = _patiently(download or hf_hub_download, f"{filename} of {model}", sleep)
    try:
        path = Path(fetch(model, filename, revision=revision, cache_dir=cache_dir, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # the client raises some forty types of its own and of its HTTP library
        raise BackendError(f"{what}: {_explain_hub_error(model, revision, filename, error)}") from error
    return ModelSource(model, revision=path.parent.name, config=read_config(path, what), cache_dir=cache_dir)


def _is_cut_off(ask: Callable[[], object]) -> bool:
    """Whether the Hub cannot be asked: no network, no answer, or forbidden. A refusal is an answer."""
    try:
        ask()
    except Exception as error:  # noqa: BLE001 (the client's errors, as for the download)
        causes = _causes(error)
        names = _class_names(causes)
        answered = any(getattr(cause, "response", None) is not None for cause in causes)
        return not answered and bool(names & {*_NETWORK_ERRORS, "OfflineModeIsEnabled", "gaierror"})
    return False


def _in_directory(path: Path, what: str, filename: str) -> ModelSource:
    directory = validate_path(path, what=what)
    if not directory.is_dir():
        raise BackendError(f"{what}: no such directory: {path}")
    content = directory / filename
    if not content.is_file():
        raise BackendError(f"{what}: {directory} holds no {filename}. Name the directory that save_pretrained wrote.")
    return ModelSource(str(directory), config=read_config(content, what))


def find_adapter(lora: LoRAConfig, cache_home: Path | None) -> ModelSource:
    """Where the adapter's files are; raises what `find_model` does."""
    if lora.adapter_path is not None:
        return _in_directory(Path(lora.adapter_path), "lora.adapter_path", ADAPTER_FILE)
    return find_model(lora.adapter_id or "", None, cache_home=cache_home, what="lora.adapter_id", filename=ADAPTER_FILE)


def model_directory(
    model: str,
    revision: str | None,
    environ: Mapping[str, str] = os.environ,
    cache_home: Path | None = None,
    filename: str = CONFIG_FILE,
) -> Path | None:
    """The directory with a model's files, if they are on this machine: as named, or in the Hub's cache.

    The cache's layout is `models--owner--name/{refs/<revision>, snapshots/<commit>}` (huggingface_hub, "Understand
    caching"). Raises `ConfigError` where there is no built-in model of that name.
    """
    if model.startswith(BUILTIN_MODEL_PREFIX):
        return packaged_files(model)
    directory = Path(model).expanduser()
    if (directory / filename).is_file():
        return directory
    cache = hub_cache_dir(cache_home) or environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    hub = Path(cache).expanduser() if cache else client_home(environ) / "hub"
    repository = hub / ("models--" + model.replace("/", "--"))
    name = revision or "main"
    reference = repository / "refs" / name
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else name
    snapshot = repository / "snapshots" / commit
    return snapshot if (snapshot / filename).is_file() else None


def read_config(path: Path, what: str = "model") -> Mapping[str, Any]:
    """Content of a model's or an adapter's configuration file, or `BackendError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: brackets nested without end
        raise BackendError(f"{what}: {path} cannot be read ({error}). Fetch or save it anew.") from error
    if not isinstance(content, dict):
        raise BackendError(f"{what}: {path} holds {type(content).__name__}, not a mapping.")
    return content


def hub_cache_dir(cache_home: Path | None) -> str | None:
    """The cache directory to name to the Hub's client; `None` leaves it to the client and so to `HF_HOME`.

    The user config's default is the client's own default: naming it would override `HF_HOME` without being asked to.
    """
    if cache_home is None or cache_home.expanduser() == CLIENT_HOME.expanduser():
        return None
    return str(cache_home.expanduser() / "hub")


class HubConfigError(Exception):
    """The Hub does not give the configuration; says why."""


FetchConfig = Callable[[str, str | None], Mapping[str, Any]]
"""Gives the `config.json` of a model at a revision, or raises `HubConfigError`."""


def fetch_model_config(model: str, revision: str | None, environ: Mapping[str, str]) -> Mapping[str, Any]:
    """Ask the Hub for a model's configuration, once and briefly: a preview does not wait for a network that is down.

    Args:
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

    endpoint = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    address = f"{endpoint.rstrip('/')}/{model}/raw/{quote(revision or 'main', safe='')}/{CONFIG_FILE}"
    try:
        request = Request(address, headers={"User-Agent": f"llenergymeasure/{VERSION}"})
        if (token := _token(environ)) is not None:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urlopen(request, timeout=PREVIEW_TIMEOUT_S) as answer:
            content = json.loads(answer.read(MAX_CONFIG_BYTES))
    except HTTPError as error:
        raise HubConfigError(f"the Hub says {_ANSWERS.get(error.code, f'HTTP status {error.code}')}") from error
    except (OSError, HTTPException, ValueError, RecursionError) as error:  # no network, no HTTP, no JSON, no URL
        raise HubConfigError(f"the Hub cannot be asked ({getattr(error, 'reason', None) or error})") from error
    if not isinstance(content, dict):
        raise HubConfigError("the Hub's config.json is no mapping")
    return content


def first_line(error: BaseException) -> str:
    """Type and first line of an error (two, where the first only announces the second); loaders write whole pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    announces = lines[0].endswith(":") and len(lines) > 1
    return f"{type(error).__name__}: {' '.join(lines[:2]) if announces else lines[0]}"


def _patiently(load: Callable[..., T], what: str, sleep: Callable[[float], None] = time.sleep) -> Callable[..., T]:
    # Recent clients try again by themselves (huggingface_hub 1.0 on), so one more attempt is enough.
    return retry_on_error(
        max_retries=1,
        exceptions=(Exception,),
        is_transient=_is_transient_hub_error,
        sleep=sleep,
        what=f"Fetching {what}",
    )(load)


def client_home(environ: Mapping[str, str]) -> Path:
    """The Hub client's home, by its documented environment variables."""
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser()


def _token(environ: Mapping[str, str]) -> str | None:
    """The user's token, from where the Hub's client takes it."""
    if environ.get("HF_TOKEN"):
        return environ["HF_TOKEN"].strip()
    try:
        path = environ.get("HF_TOKEN_PATH") or client_home(environ) / "token"
        return Path(path).expanduser().read_text().strip() or None
    except (OSError, ValueError, RuntimeError):
        return None


_MODEL_ID: Final = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
_ANSWERS: Final = {
    401: "it does not exist, or is gated or private: set HF_TOKEN",
    403: "it is gated: accept its terms there and set HF_TOKEN",
    404: "it has no such model, revision or config.json",
}


_WRONG_FORMAT: Final = "{model} is on the Hub but has no {filename}: it is not in the format transformers loads."
_EXPLANATIONS: Final = {
    "OfflineModeIsEnabled": "{model} is not in the local cache, and HF_HUB_OFFLINE forbids asking the Hub. "
    "Unset it once to fetch it.",
    "GatedRepoError": "{model} is gated. Accept its terms on the Hub and set HF_TOKEN to a token of that account.",
    "RevisionNotFoundError": "{model} has no revision {revision!r}. Name a branch, tag or commit it has, or remove "
    "revision.",
    "RepositoryNotFoundError": "{model} is neither a directory here nor on the Hub. Check the spelling; a private one "
    "needs HF_TOKEN.",
    "RemoteEntryNotFoundError": _WRONG_FORMAT,
    "EntryNotFoundError": _WRONG_FORMAT,
    "HFValidationError": "{model!r} is neither a directory here nor an id of the form owner/name.",
}
"""The Hub client's errors by name: the classes moved between its releases, and one stands for several causes."""


def _explain_hub_error(model: str, revision: str | None, filename: str, error: Exception) -> str:
    """One sentence on why `model` cannot be had from the Hub, with the fix."""
    names = _class_names(_causes(error))
    if "LocalEntryNotFoundError" in names:  # an EntryNotFoundError of its own making: cut off, not missing
        names.discard("EntryNotFoundError")
    for name, explanation in _EXPLANATIONS.items():
        if name in names:
            return explanation.format(model=model, revision=revision, filename=filename)
    return f"{model} cannot be fetched from the Hub now and is not in the local cache ({first_line(error)})"


def _is_transient_hub_error(error: Exception) -> bool:
    """Whether another attempt can help: the Hub is overloaded, or the network failed while the file is not cached."""
    causes = _causes(error)
    names = _class_names(causes)
    if "OfflineModeIsEnabled" in names or "gaierror" in names:  # no network to wait for: not even the name is known
        return False
    statuses = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes} - {None}
    return bool(statuses & _TRANSIENT_STATUS) if statuses else bool(names & _NETWORK_ERRORS)


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def _class_names(errors: list[BaseException]) -> set[str]:
    return {base.__name__ for error in errors for base in type(error).__mro__}


_TRANSIENT_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})
_NETWORK_ERRORS: Final = frozenset(
    {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "LocalEntryNotFoundError"}
)
"""Names of classes in Python, requests, httpx and the Hub's client, which says the last when it is cut off."""
