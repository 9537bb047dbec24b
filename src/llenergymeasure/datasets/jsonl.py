"""Prompts from a JSON Lines file: one object per line, `{"prompt": "…"}`, with an optional `"max_new_tokens": 128`.

Rows of the Hub go through the same checks; every error says where its record stands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llenergymeasure.datasets.types import DatasetIdentity, DatasetSource, RawPrompt, RawPrompts
from llenergymeasure.exceptions import DatasetError

PROMPT_KEY: Final = "prompt"
LIMIT_KEY: Final = "max_new_tokens"

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def read_jsonl(path: Path, n: int, *, name: str, source: DatasetSource = "file") -> RawPrompts:
    """Read the first `n` prompts of a file; every line is checked, so that a bad one shows before anything is measured.

    Blank lines are skipped, a byte order mark is tolerated, keys other than the two above are ignored.

    Args:
        path: The file.
        n: Prompts to take.
        name: How the configuration names the file; starts every error message.

    Raises:
        DatasetError: The file cannot be read, a line is bad, there is no prompt in it, or fewer than `n`.
    """
    digest = hashlib.sha256()
    prompts: list[RawPrompt] = []
    count = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                digest.update(line)
                prompt = _parse_line(line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line, name, number)
                if prompt is not None:
                    count += 1
                    if count <= n:
                        prompts.append(prompt)
    except OSError as error:
        raise DatasetError(f"dataset {name}: cannot be read: {error.strerror or error}") from error
    if count < n:
        raise too_few(name, count, n)
    return RawPrompts(tuple(prompts), DatasetIdentity(name, digest.hexdigest(), n, source))


def too_few(name: str, available: int, n: int) -> DatasetError:
    """The error for asking more prompts of a data set than it has."""
    if available == 0:
        return DatasetError(f"dataset {name}: it is empty; n = {n} prompts were asked for")
    return DatasetError(
        f"dataset {name}: n = {n} prompts were asked for, it has {available}. Set n to at most {available}."
    )


def parse_record(record: Mapping[str, Any], where: str, *, prompt_key: str = PROMPT_KEY) -> RawPrompt:
    """Check a record and take the prompt and its optional output limit from it; other keys are left alone.

    Args:
        record: The decoded JSON object or row.
        where: File and line, or data set and row; starts every error message.

    Raises:
        DatasetError: No prompt, one that is not text or empty, or a limit that is not a whole number of at least 1.
    """
    if prompt_key not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise DatasetError(f'{where}: no "{prompt_key}" key (keys found: {found}). Each prompt needs one.')
    return RawPrompt(_text(record[prompt_key], where, prompt_key), _limit(record.get(LIMIT_KEY), where))


def _parse_line(line: bytes, name: str, number: int) -> RawPrompt | None:
    where = f"dataset {name}, line {number}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start}). Save the file as UTF-8."
        ) from error
    if not text.strip():
        return None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested without end
        raise DatasetError(f"{where}: not usable JSON: {error}") from error
    if not isinstance(record, dict):
        raise DatasetError(f'{where}: must be a JSON object like {{"prompt": "…"}}, got {type(record).__name__}')
    return parse_record(record, where)


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
