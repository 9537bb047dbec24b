"""Prompts from a JSON Lines file: one object per line, `{"prompt": "…"}`, with an optional `"max_new_tokens": 128`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from llenergymeasure.datasets.records import parse_record
from llenergymeasure.datasets.types import DatasetIdentity, DatasetSource, RawPrompt, RawPrompts
from llenergymeasure.exceptions import DatasetError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_jsonl(path: Path, n: int, *, name: str, source: DatasetSource = "file") -> RawPrompts:
    """Read the first `n` prompts of a file; every line is checked, so that a bad one shows before anything is measured.

    Blank lines are skipped, a byte order mark is tolerated, keys other than the two above are ignored.

    Args:
        path: The file.
        n: Prompts to take.
        name: How the configuration names the file; starts every error message.
        source: What the identity gives as the kind of place.

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
