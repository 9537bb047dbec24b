"""The user's settings in force, each with where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from llenergymeasure.config.user_config import NOT_USED_YET, UserConfig, environment_settings, load_user_config
from llenergymeasure.config.yaml_io import load_document
from llenergymeasure.exceptions import ConfigError

FROM_DEFAULT: Final = "default"
FROM_FILE: Final = "file"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting in force.

    Args:
        path: Its dotted path in the file.
        value: As it may be shown: a secret part is replaced.
        source: `default`, `file`, or the environment variable that set it.
        is_used: Whether this release acts on it.
    """

    path: str
    value: str
    source: str
    is_used: bool = True


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """All settings in force, or why there are none.

    Args:
        file: Where the user's file is or would be.
        file_exists: Whether it is there.
        settings: Every setting; empty where there is a problem.
        problem: Why file and environment cannot be used, as every run would say it.
    """

    file: Path
    file_exists: bool
    settings: tuple[Setting, ...]
    problem: str | None = None


def effective_settings(file: Path, environ: Mapping[str, str]) -> EffectiveSettings:
    """Read file and environment as a run would; a fault in them is part of the answer.

    Args:
        file: The user's file.
        environ: Environment variables.
    """
    try:
        config = load_user_config(file, environ)
        in_file = set(_leaves(load_document(file, empty_is_fine=True).data)) if file.exists() else set()
        _, variables = environment_settings(environ)
    except ConfigError as error:
        return EffectiveSettings(file, file.exists(), (), str(error))
    settings = tuple(
        Setting(
            path,
            _shown(path, value),
            source=variables.get(path, FROM_FILE if path in in_file else FROM_DEFAULT),
            is_used=path not in NOT_USED_YET,
        )
        for path, value in _settings_of(config)
    )
    return EffectiveSettings(file, file.exists(), settings)


def _settings_of(config: UserConfig) -> Iterator[tuple[str, Any]]:
    for section, values in config.model_dump().items():
        for name, value in values.items():
            yield f"{section}.{name}", value


def _leaves(data: Mapping[str, Any]) -> Iterator[str]:
    """Dotted paths of what a file sets; an empty section sets nothing."""
    for section, values in data.items():
        for name in values or ():
            yield f"{section}.{name}"


def _shown(path: str, value: Any) -> str:
    if value is None:
        return "not set"
    if path == "output.webhook_url":  # such addresses often hold a token
        return f"{urlsplit(value).scheme}://{urlsplit(value).hostname}/…"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
