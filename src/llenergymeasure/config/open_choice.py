"""A setting whose values are names of this package's own parts and of those that installed packages register."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from typing import Any

from pydantic_core import PydanticCustomError


class OpenChoice:
    """Names of one kind.

    Args:
        ours: Those of this package; none of them can be taken by another.
        group: Entry-point group in which other packages register theirs.
    """

    def __init__(self, ours: Sequence[str], group: str) -> None:
        self.ours = tuple(ours)
        self.group = group

    def registered(self) -> tuple[str, ...]:
        """The names that other packages have registered; none of them is imported for it."""
        names = _entry_points(self.group, tuple(sys.path))
        return tuple(sorted(names - set(self.ours)))

    def known(self) -> tuple[str, ...]:
        """Every name that may be chosen."""
        return (*self.ours, *self.registered())

    def check(self, name: str) -> str:
        """The name, if there is one like it; for pydantic, which tells others as it tells of a `Literal`."""
        if name not in self.ours and name not in self.registered():
            expected = ", ".join(f"'{known}'" for known in self.known())
            raise PydanticCustomError("literal_error", "Input should be one of {expected}", {"expected": expected})
        return name

    def json_schema(self) -> dict[str, Any]:
        """Of what this package has: the schema is the same on every machine."""
        return {"type": "string", "enum": list(self.ours)}


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> frozenset[str]:
    """Names in the group of the packages on `path`, which is `sys.path`: looked up once for each."""
    return frozenset(entry.name for entry in metadata.entry_points(group=group))
