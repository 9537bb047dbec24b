"""One record of a data set (a JSON object, a Hub row) into one prompt, with errors that say where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llenergymeasure.datasets.types import RawPrompt
from llenergymeasure.exceptions import DatasetError

PROMPT_KEY: Final = "prompt"
LIMIT_KEY: Final = "max_new_tokens"


def parse_record(record: Mapping[str, Any], where: str, *, prompt_key: str = PROMPT_KEY) -> RawPrompt:
    """Check a record and take the prompt and its optional output limit from it; other keys are left alone.

    Args:
        record: The decoded JSON object or row.
        where: File and line, or data set and row; starts every error message.
        prompt_key: Key of the prompt's text.

    Raises:
        DatasetError: No prompt, one that is not text or empty, or a limit that is not a whole number of at least 1.
    """
    if prompt_key not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise DatasetError(f'{where}: no "{prompt_key}" key (keys found: {found}). Each prompt needs one.')
    return RawPrompt(_text(record[prompt_key], where, prompt_key), _limit(record.get(LIMIT_KEY), where))


def _text(value: object, where: str, key: str) -> str:
    if not isinstance(value, str):
        raise DatasetError(f'{where}: "{key}" must be text, got {type(value).__name__} {_shorten(value)}')
    if not value.strip():
        raise DatasetError(f'{where}: "{key}" is empty. Remove the line or give it a prompt.')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(
            f'{where}: "{key}" holds half a character ({value[error.start]!r}, an unpaired surrogate) '
            f"at position {error.start}"
        ) from error
    return value


def _limit(value: object, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DatasetError(f'{where}: "{LIMIT_KEY}" must be a whole number of at least 1, got {_shorten(value)}')
    return value


def _shorten(value: object, length: int = 60) -> str:
    shown = repr(value)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"
