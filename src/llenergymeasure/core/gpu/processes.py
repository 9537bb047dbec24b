"""Who else works on a GPU: processes that the driver lists and that are not this one, its ancestors or descendants.

Inside a container the driver may list process ids of the host's namespace, which mean nothing here. Such hidden ids
are taken for others' only where that is certain; where it is not, nothing is said.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


def foreign_pids(listed: Sequence[int], own: Collection[int], is_visible: Callable[[int], bool]) -> tuple[int, ...]:
    """Those of `listed` that belong to somebody else.

    Args:
        listed: Process ids that the driver lists for a device.
        own: This process and its relatives.
        is_visible: Whether a process with this id exists in this process's view.
    """
    hidden = [pid for pid in listed if not is_visible(pid)]
    foreign = [pid for pid in listed if pid not in own and pid not in hidden]
    same_namespace = any(pid in own for pid in listed)
    if same_namespace or len(hidden) > len(own):  # otherwise the hidden ones may be ours, seen from outside
        foreign += hidden
    return tuple(foreign)


def relatives(pid: int | None = None, proc: Path = PROC) -> frozenset[int]:
    """A process, its ancestors and its descendants.

    Args:
        pid: Which; by default this one.
        proc: The proc file system.
    """
    me = os.getpid() if pid is None else pid
    parents = dict(_parents(proc))
    family = {me}
    ancestor = parents.get(me, 0)
    while ancestor > 1 and ancestor not in family:
        family.add(ancestor)
        ancestor = parents.get(ancestor, 0)
    descendants = {me}
    while grown := {child for child, parent in parents.items() if parent in descendants} - descendants:
        descendants |= grown
    return frozenset(family | descendants)


def process_exists(pid: int, proc: Path = PROC) -> bool:
    """Whether a process with this id is visible here."""
    return (proc / str(pid)).exists()


def _parents(proc: Path) -> Iterator[tuple[int, int]]:
    """(pid, parent's pid) of every process that can be seen."""
    for directory in proc.iterdir():
        if directory.name.isdigit():
            try:
                stat = (directory / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it has just ended, or is not ours to see
                continue
            # The name in parentheses may hold anything; the fields behind the last one do not.
            yield int(directory.name), int(stat.rpartition(")")[2].split()[1])
