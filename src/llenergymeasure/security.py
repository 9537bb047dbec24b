"""Checks for paths and names that come from outside: configs, flags, environment variables, other people's files."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from typing import Any, Final

from llenergymeasure.exceptions import ConfigError

MAX_NAME_BYTES: Final = 255
"""Longest file name on the common Linux and macOS file systems (NAME_MAX)."""

MAX_PATH_BYTES: Final = 4095
"""Longest path Linux takes (PATH_MAX without its closing null byte)."""

MAX_ID_LENGTH: Final = 128
"""Longest id that `sanitize_experiment_id` returns; leaves room for the prefixes and suffixes of file names."""

_DIGEST_LENGTH: Final = 12

_STEERING: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+@")

# Device names that Windows and SMB shares refuse, with or without an extension.
_RESERVED_STEMS: Final = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)}
)


def validate_path(
    path: str | os.PathLike[str], *, within: Path | None = None, must_exist: bool = False, what: str = "path"
) -> Path:
    """Turn a path from user input into an absolute one that is safe to open.

    `~` is expanded; `..` and symbolic links are resolved, so that the answer names what would really be opened.

    Args:
        path: The path as the user wrote it; a relative one starts at the current directory, or at `within`.
        within: Directory that the resolved path must not leave.
        must_exist: Refuse a path where nothing is.
        what: What the path is for (`dataset`, `output_dir`); names it in error messages.

    Raises:
        ConfigError: The path is empty, holds control characters, is too long, cannot be resolved, leaves `within`,
            or does not exist though it must.
    """
    text = os.fspath(path)
    problem = _problem_with(text)
    if problem:
        raise ConfigError(f"{what}: {text!r} {problem}")
    try:
        expanded = Path(text).expanduser()
        resolved = (within / expanded if within is not None else expanded).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an unknown ~user, an undecodable name
        raise ConfigError(f"{what}: {text!r} cannot be resolved: {error}") from error
    if within is not None and not resolved.is_relative_to(within.resolve()):
        raise ConfigError(f"{what}: {text!r} leads out of {within}. Use a path inside that directory.")
    if must_exist and not resolved.exists():
        raise ConfigError(f"{what}: {text!r} does not exist (looked at {resolved})")
    return resolved


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as its user means it: `~` is the home directory, also where no shell has expanded it."""
    return Path(os.path.expanduser(path))


def for_display(text: str) -> str:
    """Text as it may go to a terminal: what would steer it (escape sequences, turned directions) is spelled out, and
    names and passwords in addresses are left out.
    """
    spelled_out = _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return _CREDENTIALS.sub("***@", spelled_out)


def quoted(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_safe_path(base_dir: str | os.PathLike[str], target_path: str | os.PathLike[str]) -> bool:
    """Whether `target_path`, links and `..` resolved, is `base_dir` or lies below it.

    A relative `target_path` starts at `base_dir`.
    """
    try:
        validate_path(target_path, within=Path(base_dir))
    except ConfigError:
        return False
    return True


def sanitize_experiment_id(experiment_id: str) -> str:
    """Make one portable file name out of an id, a model name or a study name.

    The result has only ASCII letters, digits, `.`, `_` and `-`, starts with a letter or digit, is at most
    `MAX_ID_LENGTH` long and means nothing special to a shell or a file system. Sanitising twice changes nothing more.
    Where characters are lost beyond a separator becoming `_`, a digest of the original keeps different ids apart.

    Raises:
        ConfigError: The id is empty or only white space.
    """
    if not experiment_id.strip():
        raise ConfigError("experiment id: it is empty. Give it at least one letter or digit.")
    composed = unicodedata.normalize("NFKC", experiment_id.strip())
    folded = "".join(c for c in unicodedata.normalize("NFKD", composed) if not unicodedata.combining(c))
    separated = re.sub(r"[/\\:\s]+", "_", folded)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", separated).strip("._-")
    lossy = folded != composed or re.search(r"[^A-Za-z0-9._-]", separated) is not None or not name
    if lossy or len(name) > MAX_ID_LENGTH or name.split(".", 1)[0].lower() in _RESERVED_STEMS:
        return _with_digest(name, experiment_id)
    return name


def _with_digest(name: str, original: str) -> str:
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LENGTH]
    # The digest follows a dash in place of the first dot too, so that a reserved stem (`con.txt`) is gone.
    kept = name[: MAX_ID_LENGTH - _DIGEST_LENGTH - 1].replace(".", "-") or "id"
    return f"{kept.rstrip('-')}-{digest}"


def _problem_with(text: str) -> str | None:
    if not text.strip():
        return "is empty"
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        return "holds a control character or half a character; remove it"
    encoded = text.encode("utf-8")
    if len(encoded) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    if any(len(part) > MAX_NAME_BYTES for part in encoded.split(b"/")):
        return f"has a part longer than {MAX_NAME_BYTES} bytes"
    return None
