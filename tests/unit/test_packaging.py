"""What `pyproject.toml` lets pip install is what the code asks for at run time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
REGISTRY = (ROOT / "src/llenergymeasure/core/backends/registry.py").read_text(encoding="utf-8")
ENGINES = re.findall(r'@register\(\s*"\w+",\s*extra="(\w+)",\s*needs="([^"]+)"', REGISTRY)


def test_engines_are_found() -> None:
    assert {"pytorch", "vllm"} <= {extra for extra, _ in ENGINES}


@pytest.mark.parametrize(("extra", "needs"), ENGINES)
def test_the_extra_of_an_engine_installs_what_the_engine_asks_for(extra: str, needs: str) -> None:
    listed = re.search(rf"^{extra} = \[(.+)\]$", PROJECT, re.MULTILINE)
    assert listed is not None
    assert set(needs.split()) <= set(re.findall(r'"([^"]+)"', listed[1]))
