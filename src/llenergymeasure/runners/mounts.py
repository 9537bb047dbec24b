"""What a container sees of this machine's files: caches to be shared, and whatever an experiment names, to be read.

Each is at its own place, so that a path means the same in and out of a container. A link is followed inside as here:
what it leads to is where the container looks for it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llenergymeasure.config.models import ExperimentConfig


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory that a container sees at the place `target`."""

    source: Path
    target: Path
    read_only: bool = False

    def option(self) -> str:
        """As `--mount` takes it: fields in CSV."""
        row = io.StringIO()
        fields = ["type=bind", f"source={self.source}", f"target={self.target}", *["readonly"] * self.read_only]
        csv.writer(row, lineterminator="").writerow(fields)
        return row.getvalue()


def at_their_places(caches: Sequence[Path], read: Sequence[Path], home: Path) -> Iterator[Mount]:
    """Caches, made if need be (one that the daemon made would be root's), and what is only read; each once."""
    for path in caches:
        with contextlib.suppress(OSError):
            path.mkdir(parents=True, exist_ok=True)
    only_read = [path for path in read if path not in caches]
    wanted = [Mount(path, path) for path in caches]
    wanted += [Mount(path, path, read_only=True) for path in only_read]
    wanted += [mount for path in only_read for mount in _behind_links(path)]
    mounted: list[Path] = []
    for mount in wanted:
        target = mount.target
        seen_already = home.is_relative_to(target) or any(target.is_relative_to(above) for above in mounted)
        if mount.source.exists() and not seen_already:
            mounted.append(target)
            yield mount


def _behind_links(path: Path) -> Iterator[Mount]:
    """What the links in a directory lead to, where whoever sees the directory at its place looks for it.

    A snapshot in a Hub's cache is such a directory, and one that is reached by a link itself another: its relative
    links start from where it is seen. Directories in it are let alone: a model has none, and anything may be in them.
    """
    for link in path.iterdir() if path.is_dir() else ():
        if link.is_symlink():
            yield Mount(link.resolve(), Path(os.path.normpath(path / link.readlink())), read_only=True)


def named_paths(configs: Sequence[ExperimentConfig]) -> list[Path]:
    """Files and directories of this machine that configurations name: models, adapters, data sets, engines."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for each in value.values():
                yield from texts(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                yield from texts(each)

    found: dict[Path, None] = {}
    for config in configs:
        for text in texts(config.model_dump(exclude={"output_dir"}, exclude_none=True)):
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # no name of a file
                path = absolute(text)
                if text and path.exists():
                    found[path] = None
    return sorted(found, key=lambda path: len(path.parts))


def absolute(path: str | Path) -> Path:
    """A path from the root, without asking what its links lead to."""
    return Path(os.path.abspath(Path(path).expanduser()))
