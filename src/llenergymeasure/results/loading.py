"""Reading our own JSON files, also when they are newer than this release, cut short or edited by hand."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from llenergymeasure.constants import RESULT_SCHEMA_VERSION
from llenergymeasure.exceptions import PersistenceError

ModelT = TypeVar("ModelT", bound=BaseModel)

_MAJOR = RESULT_SCHEMA_VERSION.split(".")[0]
_MAX_PROBLEMS_SHOWN = 5


class ResultFileWarning(UserWarning):
    """A result file could be read, but not everything is as it should be."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        PersistenceError: The file cannot be read, or does not hold one valid JSON object; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise PersistenceError(f"Cannot read {path}: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        raise PersistenceError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
            "It was cut short or damaged."
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, NaN, a number of thousands of digits, endless nesting
        raise PersistenceError(f"{path} is not valid JSON: {error}. It was damaged.") from error
    if not isinstance(content, dict):
        raise PersistenceError(
            f"{path} holds a JSON {type(content).__name__}, not an object. It is not one of our files."
        )
    return content


def load_record(path: Path, model: type[ModelT], what: str) -> ModelT:
    """Read a versioned record.

    Fields that this release does not know are left out with a `ResultFileWarning`; they come from a newer 2.x release.

    Args:
        model: Has a `schema_version`.
        what: What the file is, for messages: `result`, `study summary`.

    Raises:
        PersistenceError: The file is unreadable, damaged, or of another major version; names the file and the reason.
    """
    content = read_json_object(path)
    _check_version(path, content.get("schema_version"), what)
    unknown = _remove_unknown_fields(content, model)
    try:
        record = model.model_validate(content)
    except ValidationError as error:
        raise _not_a_record(path, what, error) from error
    if unknown:
        shown = ", ".join(unknown[:_MAX_PROBLEMS_SHOWN]) + (", …" if len(unknown) > _MAX_PROBLEMS_SHOWN else "")
        warnings.warn(
            f"{path}: left out {len(unknown)} unknown field(s) ({shown}); the file has schema "
            f"{content['schema_version']}, this release knows {RESULT_SCHEMA_VERSION}.",
            ResultFileWarning,
            stacklevel=3,
        )
    return record


def _remove_unknown_fields(content: dict[str, Any], model: type[BaseModel]) -> list[str]:
    """Take out of `content`, at any depth, what `model` does not know; their dotted paths."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        locations = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        for location in locations:
            _remove(content, location)
        return [_dotted(location) for location in locations]
    return []


def _check_version(path: Path, version: object, what: str) -> None:
    if version is None:
        raise PersistenceError(f"{path} has no schema_version: it is not a {what} of llenergymeasure 2.")
    if not isinstance(version, str) or not re.fullmatch(r"\d+(\.\d+)+", version):
        raise PersistenceError(f"{path}: schema_version {version!r} is not a version.")
    if version.split(".")[0] != _MAJOR:
        raise PersistenceError(
            f"{path} has schema version {version}; this release reads {_MAJOR}.x only. "
            f"Read it with the release of llenergymeasure that wrote it."
        )


def _not_a_record(path: Path, what: str, error: ValidationError) -> PersistenceError:
    problems = [f"{_dotted(problem['loc']) or 'the file'}: {problem['msg']}" for problem in error.errors()]
    shown = "\n".join(f"  - {problem}" for problem in problems[:_MAX_PROBLEMS_SHOWN])
    more = len(problems) - _MAX_PROBLEMS_SHOWN
    tail = f"\n  - and {more} more" if more > 0 else ""
    return PersistenceError(f"{path} is not a valid {what}:\n{shown}{tail}")


def _remove(content: dict[str, Any], location: Sequence[int | str]) -> None:
    parent: Any = content
    for key in location[:-1]:
        parent = parent[key]
    del parent[location[-1]]


def _dotted(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
