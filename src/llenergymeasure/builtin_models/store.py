"""Where built-in models are kept: the package's own files, and the directories made of them."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import platformdirs

from llenergymeasure.constants import APP_NAME, BUILTIN_MODEL_PREFIX
from llenergymeasure.exceptions import BackendError, ConfigError

logger = logging.getLogger(__name__)

_PACKAGE_DIR: Final = Path(__file__).parent
_FOLDERS: Final = {"tiny-llama": "tiny_llama"}
_WEIGHTS: Final = "model.safetensors"
_DIGEST: Final = f"{_WEIGHTS}.sha256"
"""The weights' SHA-256 as they were made, in the form that `sha256sum --check` reads."""


def is_builtin(model: str) -> bool:
    """Whether a configuration's `model` names one of these (known or not)."""
    return model.startswith(BUILTIN_MODEL_PREFIX)


def builtin_models() -> tuple[str, ...]:
    """All names, as a configuration gives them."""
    return tuple(f"{BUILTIN_MODEL_PREFIX}{name}" for name in _FOLDERS)


def packaged_files(model: str) -> Path:
    """Directory of the package with the model's `config.json` and tokenizer, but no weights: costs nothing to look at.

    Raises:
        ConfigError: There is no built-in model of that name.
    """
    name = model.removeprefix(BUILTIN_MODEL_PREFIX)
    if name not in _FOLDERS:
        near = difflib.get_close_matches(name, _FOLDERS, n=1)
        hint = f" Did you mean '{BUILTIN_MODEL_PREFIX}{near[0]}'?" if near else ""
        raise ConfigError(f"model: no built-in model '{model}'.{hint} There are: {', '.join(builtin_models())}")
    return _PACKAGE_DIR / _FOLDERS[name]


def materialise(model: str, cache_dir: Path | None = None) -> Path:
    """Directory of a built-in model with its weights, ready for `from_pretrained`; made when it is not there yet.

    The directory's name carries a hash of its content, so that releases do not get in each other's way. Processes may
    race for it: each builds aside and renames, the first one wins.

    Args:
        model: `builtin/<name>`.
        cache_dir: Where models are kept; default: `models` in the platform's cache directory (on Linux
            `$XDG_CACHE_HOME/llenergymeasure`). Where it cannot be written, a directory of this user's among the
            temporary files takes its place, with a warning in the log.

    Raises:
        ConfigError: There is no built-in model of that name.
        BackendError: Nowhere to write, or torch and safetensors are not installed.
    """
    source = packaged_files(model)
    name = f"{model.removeprefix(BUILTIN_MODEL_PREFIX)}-{_content_hash(source)[:12]}"
    preferred = cache_dir or Path(platformdirs.user_cache_dir(APP_NAME)) / "models"
    try:
        return _ensure(source, preferred / name)
    except OSError as error:
        fallback = _temporary_dir()
        logger.warning(
            "cannot write %s (%s): the built-in model goes to %s instead. Set XDG_CACHE_HOME to a directory that can "
            "be written to keep it.",
            preferred,
            error.strerror or error,
            fallback,
        )
        return _ensure_or_explain(source, fallback / name, preferred)


def _ensure_or_explain(source: Path, target: Path, preferred: Path) -> Path:
    try:
        return _ensure(source, target)
    except OSError as error:
        raise BackendError(
            f"the built-in model can be written neither to {preferred} nor to {target.parent}: "
            f"{error.strerror or error}. Set XDG_CACHE_HOME or TMPDIR to a directory with 20 MB of free space."
        ) from error


def _ensure(source: Path, target: Path) -> Path:
    if _is_whole(source, target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        made = aside / "made"
        made.mkdir()
        for file in _files(source):
            shutil.copyfile(file, made / file.name)
        _write_weights(made)
        _move_into_place(source, made, target, damaged=aside / "damaged")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _write_weights(directory: Path) -> None:
    try:
        from safetensors.torch import save

        from llenergymeasure.builtin_models.weights import build_weights

        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        weights = build_weights(config)
    except ImportError as error:
        raise BackendError(
            f"the built-in models need torch and safetensors ({error.name} is missing). "
            'Install them with: pip install "llenergymeasure[pytorch]"'
        ) from error
    logger.info("making the weights of a built-in model in %s", directory)
    content = save(weights, metadata={"format": "pt"})
    (directory / _WEIGHTS).write_bytes(content)
    (directory / _DIGEST).write_text(_digest_line(content), encoding="ascii")


def _move_into_place(source: Path, made: Path, target: Path, *, damaged: Path) -> None:
    """Rename `made` to `target`; another process may do the same at any moment."""
    if target.exists() and not _is_whole(source, target):
        logger.warning("the built-in model in %s was damaged and is made again", target)
        with suppress(FileNotFoundError):  # another process moves the damaged one away at this moment
            os.rename(target, damaged)
    try:
        os.rename(made, target)
    except OSError:
        if not _is_whole(source, target):  # otherwise another process was first, with the same content
            raise


def _is_whole(source: Path, target: Path) -> bool:
    """Whether every file has the content it was made with: a damaged model would run, and be another model."""
    try:
        copied = all((target / file.name).read_bytes() == file.read_bytes() for file in _files(source))
        return copied and (target / _DIGEST).read_bytes() == _digest_line((target / _WEIGHTS).read_bytes()).encode()
    except OSError:
        return False


def _digest_line(weights: bytes) -> str:
    return f"{hashlib.sha256(weights).hexdigest()}  {_WEIGHTS}\n"


def _files(source: Path) -> list[Path]:
    return sorted(file for file in source.iterdir() if file.is_file())


def _content_hash(source: Path) -> str:
    from llenergymeasure.builtin_models.weights import RECIPE_VERSION

    digest = hashlib.sha256(f"recipe {RECIPE_VERSION}\n".encode())
    for file in _files(source):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _temporary_dir() -> Path:
    """A directory among the temporary files that belongs to this user alone."""
    user = os.getuid()
    directory = Path(tempfile.gettempdir()) / f"{APP_NAME}-{user}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        owner = directory.lstat().st_uid
    except OSError as error:
        raise BackendError(
            f"no directory for the built-in model: {directory} cannot be made ({error.strerror or error}). "
            "Set XDG_CACHE_HOME or TMPDIR to a directory that can be written."
        ) from error
    if directory.is_symlink() or owner != user:
        raise BackendError(f"{directory} belongs to somebody else. Set XDG_CACHE_HOME to a directory of your own.")
    return directory
