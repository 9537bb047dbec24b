"""A container image made without any registry: this interpreter, the libraries it loads, and installed packages.

    python -m tests.docker.image TAG [--extra pytorch]

What `docker/build` makes with a package index and a base image, this makes in seconds from what is here.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

from llenergymeasure.constants import VERSION
from llenergymeasure.core.host.docker import VERSION_LABEL

REPOSITORY = Path(__file__).resolve().parents[2]
SITE = Path("opt/site")
NOT_NEEDED = re.compile(r"(^|/)(tests?|include|cmake)/|\.(a|pyi|h)$")
"""Files of packages that no run needs."""

BEING_WRITTEN = re.compile(r"\.pyc\.\d+$")
"""What another process that imports them is about to give its real name."""

SKIPPED_STDLIB = {"site-packages", "dist-packages", "test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3"}
"""Likewise of the standard library."""

Members = Iterator[tuple[Path, Path]]
"""A file here, and its place in the image."""


def build_image(
    tag: str,
    extras: Iterable[str] = (),
    *,
    packages: Iterable[str] = (),
    version: str | None = VERSION,
    more: Mapping[str, Path] | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Make the image `tag`.

    Args:
        extras: Of this package: the engines it has.
        packages: Further installed distributions.
        version: Release that its label tells; `None`: no label.
        more: Further files and directories, by their place in the image; they come before those of packages.
        environ: Further environment variables of it.
    """
    settings = {"PYTHONPATH": f"/{SITE}", "PATH": "/usr/local/bin:/bin", **(environ or {})}
    changes = [f"ENV {name}={value}" for name, value in settings.items()]
    changes += [] if version is None else [f"LABEL {VERSION_LABEL}={version}"]
    options = [word for change in changes for word in ("--change", change)]
    with subprocess.Popen(["docker", "import", *options, "-", tag], stdin=subprocess.PIPE) as importing:
        assert importing.stdin is not None
        with suppress(BrokenPipeError):  # the client says why it reads no more
            with tarfile.open(fileobj=importing.stdin, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                _fill(archive, chain(_further(more or {}), _members(extras, packages)))
            importing.stdin.close()
    if importing.returncode != 0:
        raise RuntimeError(f"docker import of {tag} failed")


def _fill(archive: tarfile.TarFile, members: Members) -> None:
    added: set[Path] = set()
    binaries = [Path(sys.executable).resolve()]
    for source, target in members:
        if target not in added and not BEING_WRITTEN.search(source.name):
            added.add(target)
            archive.add(source, str(target), recursive=False, filter=_owned_by_root)
            if ".so" in source.name:
                binaries.append(source)
    for library in _system_libraries(binaries):
        if Path(str(library).lstrip("/")) not in added:
            archive.add(library.resolve(), str(library).lstrip("/"), filter=_owned_by_root)
    for name in ("python3", "python"):
        archive.addfile(_link(f"usr/local/bin/{name}", Path(sys.executable).resolve().name))
    _add_text(archive, "etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
    archive.addfile(_directory("tmp", 0o1777))


def _further(more: Mapping[str, Path]) -> Members:
    for place, path in more.items():
        yield from _below(path, Path(place)) if path.is_dir() else ((path, Path(place)),)


def _members(extras: Iterable[str], packages: Iterable[str]) -> Members:
    interpreter = Path(sys.executable).resolve()
    yield interpreter, Path("usr/local/bin") / interpreter.name
    yield Path("/bin/sh").resolve(), Path("bin/sh")
    stdlib = Path(sysconfig.get_path("stdlib"))
    for path in stdlib.rglob("*"):
        relative = path.relative_to(stdlib)
        if path.is_file() and relative.parts[0] not in SKIPPED_STDLIB and not relative.parts[0].startswith("config-"):
            yield path, Path("usr/local/lib") / stdlib.name / relative
    needed = closure("llenergymeasure", extras)
    for name in packages:
        needed |= closure(name, ())
    for distribution in needed.values():
        yield from _files_of(distribution)
    yield from _below(REPOSITORY / "src", SITE)


def _below(directory: Path, target: Path) -> Members:
    for path in directory.rglob("*"):
        if path.is_file():
            yield path, target / path.relative_to(directory)


def _files_of(distribution: metadata.Distribution) -> Members:
    for file in distribution.files or ():
        path = Path(str(distribution.locate_file(file)))
        inside = not file.parts[0].startswith("..") and file.suffix != ".pth"
        if inside and path.is_file() and not NOT_NEEDED.search(str(file)):
            yield path, SITE / file


def closure(name: str, extras: Iterable[str]) -> dict[str, metadata.Distribution]:
    """An installed distribution and all that it needs, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(name, frozenset(extras))]
    while waiting:
        wanted, asked = waiting.pop()
        found[wanted] = metadata.distribution(wanted)
        for requirement in map(Requirement, found[wanted].requires or ()):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in asked or {""}):
                continue
            if requirement.name.lower() not in found:
                waiting.append((requirement.name.lower(), frozenset(requirement.extras)))
    return found


def _system_libraries(binaries: Iterable[Path]) -> list[Path]:
    """The shared libraries outside of packages that these files load (ldd(1)), the loader among them."""
    answer = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    found = {Path(path) for path in re.findall(r"(/\S+\.so\S*)(?= \(0x)", answer)}
    return sorted(path for path in found if "site-packages" not in path.parts)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.mode |= 0o444 | (0o111 if member.mode & 0o100 else 0)
    return member


def _link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def _directory(name: str, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    return member


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(text), 0o644
    archive.addfile(member, io.BytesIO(text.encode()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a container image from this Python environment.")
    parser.add_argument("tag")
    parser.add_argument("--extra", action="append", default=[], help="of this package, e.g. pytorch")
    options = parser.parse_args()
    build_image(options.tag, options.extra)
