"""docs/comparison.md names tests that exist, and figures of ours that a benchmark holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")


def test_every_mistake_has_a_test_that_exists() -> None:
    _, _, table = PAGE.partition("| mistake | here | test |\n")
    rows = [line for line in table.splitlines()[1:] if line.startswith("| ")]
    named = {found for row in rows for found in re.findall(r"`(test_\w+)`", row)}
    existing = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert rows
    assert [row for row in rows if not re.search(r"`test_\w+`", row)] == []
    assert named - existing == set()


def test_the_start_up_targets_are_those_of_the_benchmark() -> None:
    tree = ast.parse((ROOT / "benchmarks" / "startup.py").read_text(encoding="utf-8"))
    (targets,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TARGETS"
    )
    stated = re.search(
        r"targets are (\d+) for `(.+?)`, (\d+) for `(.+?)` and (\d+) for `(.+?)`", " ".join(PAGE.split())
    )
    assert stated is not None
    limits, commands = stated.groups()[::2], stated.groups()[1::2]
    assert {command: float(limit) for command, limit in zip(commands, limits, strict=True)}.items() <= targets.items()
