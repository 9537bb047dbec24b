"""Where a model's files are: made by this package, in a directory, in the Hub's cache, or on the Hub.

Everything that follows (tokenizer, weights, adapter) is loaded from the one commit found here, so that an update of
the repository in mid-run cannot mix two versions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from llenergymeasure.builtin_models.store import materialise
from llenergymeasure.constants import BUILTIN_MODEL_PREFIX
from llenergymeasure.core.model.hub_errors import explain_hub_error, is_transient_hub_error
from llenergymeasure.exceptions import BackendError
from llenergymeasure.resilience import retry_on_error
from llenergymeasure.security import validate_path

P = ParamSpec("P")
T = TypeVar("T")

CONFIG_FILE: Final = "config.json"
ADAPTER_FILE: Final = "adapter_config.json"
CLIENT_HOME: Final = Path("~/.cache/huggingface")
"""Home of the Hub client's cache unless the environment says otherwise."""

HUB_TIMEOUT_S: Final = 10.0
"""How long the Hub may take to tell about one file, in seconds."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model (or adapter) that was found.

    Args:
        location: What the engine's loader gets: a directory, or an id on the Hub.
        revision: Commit on the Hub; `None` for a directory.
        config: Content of its configuration file.
        cache_dir: Cache that holds, or will hold, its files; `None`: the Hub client's own.
    """

    location: str
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    cache_dir: str | None = None

    @property
    def loader_arguments(self) -> dict[str, Any]:
        """Keyword arguments that every `from_pretrained` of this source needs."""
        if self.revision is None:
            return {}
        arguments: dict[str, Any] = {"revision": self.revision}
        if self.cache_dir is not None:
            arguments["cache_dir"] = self.cache_dir
        return arguments

    def patiently(self, load: Callable[P, T]) -> Callable[P, T]:
        """`load`, tried once more where it fetches from the Hub and the network fails."""
        if self.revision is None:
            return load
        return retry_on_error(
            max_retries=1,
            exceptions=(Exception,),
            is_transient=is_transient_hub_error,
            what=f"Fetching {self.location}",
        )(load)


class Download(Protocol):
    """`huggingface_hub.hf_hub_download`, as far as it is used here."""

    def __call__(
        self, repo_id: str, filename: str, *, revision: str | None, cache_dir: str | None, etag_timeout: float
    ) -> str:
        """Path of the file in the cache, fetched if it was not there."""


def find_model(
    model: str,
    revision: str | None,
    *,
    cache_home: Path | None,
    what: str = "model",
    filename: str = CONFIG_FILE,
    download: Download | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> ModelSource:
    """Find a model's configuration, and with it the place and commit of everything else.

    Args:
        model: `builtin/<name>`, a directory, or an id on the Hub.
        revision: Branch, tag or commit on the Hub.
        cache_home: The Hub client's home directory (`HF_HOME`); `None` leaves it to the client.
        what: What it is to the reader of an error: `model`, `lora.adapter_id`.
        filename: The configuration file that makes it one.
        download: Fetches from the Hub; the Hub's own client unless given.
        sleep: Waits between attempts, in seconds.

    Raises:
        BackendError: It does not exist, is gated, is not a model, or cannot be reached now.
        ConfigError: There is no built-in model of that name.
    """
    if model.startswith(BUILTIN_MODEL_PREFIX):
        return find_directory(materialise(model), what, filename)
    if Path(model).expanduser().is_dir() or _looks_like_a_path(model):
        return find_directory(Path(model), what, filename)
    return _on_the_hub(model, revision, cache_home, what, filename, download or _hub_download(), sleep)


def find_directory(path: Path, what: str, filename: str = CONFIG_FILE) -> ModelSource:
    """Find a model (or adapter) in a directory.

    Raises:
        BackendError: The directory does not exist, or holds no such thing.
        ConfigError: The path is unsafe to open.
    """
    directory = validate_path(path, what=what)
    if not directory.is_dir():
        raise BackendError(f"{what}: no such directory: {path}")
    content = directory / filename
    if not content.is_file():
        raise BackendError(f"{what}: {directory} holds no {filename}. Name the directory that save_pretrained wrote.")
    return ModelSource(str(directory), config=_read(content, what))


def _looks_like_a_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or model.count("/") > 1


def _on_the_hub(
    model: str,
    revision: str | None,
    cache_home: Path | None,
    what: str,
    filename: str,
    download: Download,
    sleep: Callable[[float], None],
) -> ModelSource:
    cache_dir = hub_cache_dir(cache_home)

    # Recent clients try again by themselves (huggingface_hub 1.0 on), so one more attempt is enough.
    @retry_on_error(
        max_retries=1,
        exceptions=(Exception,),
        is_transient=is_transient_hub_error,
        sleep=sleep,
        what=f"Fetching {filename} of {model}",
    )
    def fetch() -> str:
        return download(model, filename, revision=revision, cache_dir=cache_dir, etag_timeout=HUB_TIMEOUT_S)

    try:
        path = Path(fetch())
    except Exception as error:  # the client raises some forty types of its own and of its HTTP library
        raise BackendError(f"{what}: {explain_hub_error(model, revision, filename, error)}") from error
    return ModelSource(model, revision=path.parent.name, config=_read(path, what), cache_dir=cache_dir)


def hub_cache_dir(cache_home: Path | None) -> str | None:
    """The cache directory to name to the Hub's client; `None` leaves it to the client and so to `HF_HOME`.

    The user config's default is the client's own default: naming it would override `HF_HOME` without being asked to.
    """
    if cache_home is None or cache_home.expanduser() == CLIENT_HOME.expanduser():
        return None
    return str(cache_home.expanduser() / "hub")


def _hub_download() -> Download:
    from huggingface_hub import hf_hub_download

    fetch: Download = hf_hub_download
    return fetch


def _read(path: Path, what: str) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendError(f"{what}: {path} cannot be read ({error}). Fetch or save it anew.") from error
    if not isinstance(content, dict):
        raise BackendError(f"{what}: {path} holds {type(content).__name__}, not a mapping.")
    return content
