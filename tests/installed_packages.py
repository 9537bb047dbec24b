"""Packages of others, as an environment has them: a module, and what it registers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


class InstalledPackages:
    """Packages that Python finds for the length of a test."""

    def __init__(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        site.mkdir()
        monkeypatch.syspath_prepend(str(site))
        self._site, self._monkeypatch = site, monkeypatch

    def add(self, package: str, source: str, group: str, entry_point: str) -> None:
        """Install version 1.2 of `package`, a module that registers one thing, `entry_point`."""
        module = package.replace("-", "_")
        (self._site / f"{module}.py").write_text(source)
        info = self._site / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[llenergymeasure.{group}]\n{entry_point}\n")
        self._monkeypatch.setattr(sys, "path", [*sys.path])
        self._monkeypatch.delitem(sys.modules, module, raising=False)
