"""The names that `backend` may have: this package's engines, and those that installed packages register."""

from __future__ import annotations

import sys
from functools import cache
from importlib import metadata
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llenergymeasure.config.ssot import BACKENDS, BACKENDS_GROUP


def known_backends() -> tuple[str, ...]:
    """Every name that `backend` may have; nothing is imported for it."""
    return (*BACKENDS, *_registered(tuple(sys.path)))


@cache
def _registered(path: tuple[str, ...]) -> tuple[str, ...]:
    """Names in the entry-point group of the packages on `path`, which is `sys.path`: looked up once for each."""
    names = {entry.name for entry in metadata.entry_points(group=BACKENDS_GROUP)}
    return tuple(sorted(names - set(BACKENDS)))


def no_batch_setting(backend: Any) -> str:
    """Why a batch size cannot be set for `backend` by the name that means the same on every engine."""
    if backend in known_backends():
        return f"batch_size: backend {backend!r} has no such field. Set it in passthrough_kwargs, under its own name."
    return f"batch_size: backend {backend!r} is unknown. Use one of: {', '.join(known_backends())}."


def _check(name: str) -> str:
    if name not in BACKENDS and name not in known_backends():
        expected = ", ".join(f"'{known}'" for known in known_backends())
        raise PydanticCustomError("literal_error", "Input should be one of {expected}", {"expected": expected})
    return name


_SCHEMA: dict[str, Any] = {"type": "string", "enum": BACKENDS}
"""Of what this package has: the schema is the same on every machine."""

BackendName = Annotated[str, AfterValidator(_check), WithJsonSchema(_SCHEMA)]
