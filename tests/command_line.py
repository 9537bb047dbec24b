"""`llem` in this process: what it says, and the exit code it would end with."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from llenergymeasure.cli.app import run_app


@dataclass(frozen=True)
class Spoken:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


class CommandLine:
    """`llem`, in a directory of its own, with a user config of its own and no setting of whoever runs the tests.

    Args:
        directory: An empty directory to work in; the temporary files go there too, in `tmp`.
        monkeypatch: Changes the environment for the length of the test.
        capture: Reads what is written to stdout and stderr, by whomever.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.tmp = directory.with_name(f"{directory.name}-tmp")
        self.tmp.mkdir()
        self._capture = capture
        monkeypatch.chdir(directory)
        monkeypatch.setattr(tempfile, "tempdir", str(self.tmp))
        for name in [name for name in os.environ if name.startswith("LLEM_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "xdg"))
        monkeypatch.setenv("COLUMNS", "100")

    def file(self, name: str, text: str) -> str:
        """Write a file in the directory; returns its name."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    def user_config(self, text: str) -> None:
        """Write the user config."""
        self.file("xdg/llenergymeasure/config.yaml", text)

    def __call__(self, *arguments: str) -> Spoken:
        """Run a command, given the words after `llem`."""
        self._capture.readouterr()
        code = run_app(list(arguments))
        out, err = self._capture.readouterr()
        return Spoken(code, out, err)
