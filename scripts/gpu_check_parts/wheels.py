"""Packages that a bare machine lacks, brought along as wheels and put on the path without an installer.

What is in the directory goes in front of what the machine has: nothing that torch or transformers need belongs there.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CARRIED = (
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
    "platformdirs",
    "typer",
    "annotated-doc",
    "click",
    "shellingham",
    "rich",
    "markdown-it-py",
    "mdurl",
    "pygments",
    "pyyaml",
    "tqdm",
    "packaging",
    "psutil",
)
"""What the project needs beside torch, transformers, accelerate, peft, nvidia-ml-py, pyarrow and pytest."""


NEEDED = ("pydantic", "platformdirs", "typer", "yaml", "tqdm", "packaging", "psutil", "pynvml", "pyarrow", "torch")
"""Modules, looked for before a minute of the board is spent."""


def download_command(python: str = "3.12") -> str:
    """How to fetch the wheels, with the versions that the requirements pin, on any machine with a package index."""
    pinned = _pinned_versions()
    wanted = " \\\n    ".join(
        " ".join(pinned[name] for name in CARRIED[at : at + 5]) for at in range(0, len(CARRIED), 5)
    )
    return (
        f"pip download --no-deps --only-binary=:all: --python-version {python} --platform manylinux2014_x86_64 \\\n"
        f"    --dest wheels {wanted}"
    )


def missing_modules() -> list[str]:
    """Modules that this Python lacks and that no part can do without."""
    return [name for name in NEEDED if util.find_spec(name) is None]


def unpacked(wheels: Path, target: Path) -> list[str]:
    """Unpack every wheel of a directory to `target`; returns their file names."""
    found = sorted(wheels.glob("*.whl"))
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return [wheel.name for wheel in found]


def put_on_path(directories: Sequence[Path]) -> None:
    """Put directories in front of this process's module path."""
    for directory in reversed([str(directory) for directory in directories]):
        if directory not in sys.path:
            sys.path.insert(0, directory)


def _pinned_versions() -> dict[str, str]:
    """Pinned requirement by package name."""
    pinned = {}
    for name in ("torch.txt", "run.txt"):
        for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
            package, separator, _ = line.partition("==")
            if separator:
                pinned[package.strip().lower()] = line.strip()
    return pinned
