"""What the documentation tells somebody to type exists: commands and their flags, files, names, images and extras."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from llenergymeasure.cli.app import app
from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.constants import VERSION
from llenergymeasure.core.host.docker import default_image

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for part in ("docs", "examples", "benchmarks") for page in (ROOT / part).rglob("*.md"))]
)
OF_EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

FENCED = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|[\s/])((?:llem (?=[a-z-])|python3? (?:-m |\S+\.py\b)|make [a-z]|docker/build\b).*)")
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
SETTINGS = set(re.findall(r"^\| `([\w.]+)`", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
"""Everything a user can set; another test holds that page to the code."""

THEIRS = {"venv", "get_energy", "union_by_name", "force_cpu_power"}
"""Modules and names that are other programs'."""

IN_FORMULAS = re.compile(r"[a-zA-Z]_\w+|E_integral|request_energy_\w+")
"""Names that a formula gives, and those of columns that the code puts together."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def in_backticks(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text_of(page)))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in blocks and in backticks, each of a line by itself."""
    blocks = [line for block in FENCED.finditer(text_of(page)) for line in block[0].splitlines()]
    for line in [*blocks, *in_backticks(page)]:
        for part in re.split(r" && |; | \| |  #", line):
            if found := COMMAND.search(part):
                yield shlex.split(re.sub(r"[\[\]]", "", found[1]))


def flags_known(words: list[str], page: Path) -> set[str] | None:
    """Flags of the command that is typed; `None`: there is no such command."""
    match words:
        case ["llem", *rest]:
            return flags_of_llem().get(next((word for word in rest if not word.startswith("-")), ""))
        case ["make", target, *_]:
            return set() if target in TARGETS else None
        case ["docker/build", *rest]:
            return set() if not rest or f" {rest[0]})" in (ROOT / "docker/build").read_text() else None
        case [_, "-m", module, *_]:
            path = ROOT / ("src" if module.startswith("llenergymeasure") else "") / module.replace(".", "/")
            return flags_in(path / "__main__.py", path.with_suffix(".py"))
        case [_, script, *_]:
            return set() if f"\n# {script}\n" in text_of(page) else flags_in(ROOT / script)
    return None


@cache
def flags_of_llem() -> dict[str, set[str]]:
    """Flags by command; those of `llem` itself under the empty name."""
    group: Any = get_command(app)
    every = {"": group, **group.commands}
    return {name: {flag for each in command.params for flag in each.opts} for name, command in every.items()}


def flags_in(*candidates: Path) -> set[str] | None:
    """Words with a dash in the source of whichever file exists, and in what all benchmarks share."""
    for path in candidates:
        if path.is_file():
            sources = [path, *path.parent.glob("report.py")] if path.parent.name == "benchmarks" else [path]
            return {
                node.value
                for source in sources
                for node in ast.walk(ast.parse(text_of(source)))
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("-")
            }
    return None


@cache
def words_of_the_code() -> set[str]:
    parts = ("src", "tests", "scripts", "benchmarks", "examples", ".github")
    files = (file for part in parts for file in (ROOT / part).rglob("*"))
    sources = [file for file in files if file.suffix in {".py", ".yaml", ".yml", ".json"}]
    return {word for file in sources for word in [file.stem, *re.findall(r"[A-Za-z_]\w*", text_of(file))]}


@OF_EVERY_PAGE
def test_every_command_exists_and_takes_the_flags_it_is_given(page: Path) -> None:
    wrong = []
    for words in commands(page):
        if THEIRS & set(words):
            continue
        known = flags_known(words, page)
        typed = {word.partition("=")[0] for word in words if word.startswith("-")} - {"-m", "--help"}
        if known is None or typed - known:
            wrong.append(words)
    assert wrong == []


def test_commands_are_found_wherever_they_stand() -> None:
    found = [shlex.join(words) for words in commands(ROOT / "docs" / "comparing-results.md")]
    assert "llem run study.yaml --cycles 1 -o before" in found
    found = [shlex.join(words) for words in commands(ROOT / "README.md")]
    assert {"make demo", "llem run experiment.yaml --dry-run", "llem run study.yaml --cluster auto"} <= set(found)


@pytest.mark.parametrize(
    "typed", ["llem measure", "llem run --modle x", "make all", "docker/build cuda", "python -m llm"]
)
def test_a_command_that_does_not_exist_is_noticed(typed: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Type `{typed}`.\n")
    with pytest.raises(AssertionError):
        test_every_command_exists_and_takes_the_flags_it_is_given(page)


@OF_EVERY_PAGE
def test_every_extra_that_is_to_be_installed_exists(page: Path) -> None:
    extras = set(re.findall(r"^(\w+) = \[", text_of(ROOT / "pyproject.toml"), re.MULTILINE))
    named = {
        name for group in re.findall(r'"(?:llenergymeasure|\.)\[([\w,]+)\]', text_of(page)) for name in group.split(",")
    }
    assert named - extras == set()


@OF_EVERY_PAGE
def test_every_image_is_called_as_it_is_built(page: Path) -> None:
    built = {*map(default_image, BACKENDS), f"llenergymeasure/pytorch:{VERSION}-cpu"}
    assert set(re.findall(r"llenergymeasure/\w+:\d[\w.-]*\w", text_of(page))) - built == set()


@OF_EVERY_PAGE
def test_every_variable_and_every_setting_can_be_set(page: Path) -> None:
    examples = {name for file in (ROOT / "examples").rglob("*.py") for name in re.findall(r"LLEM_\w+", text_of(file))}
    sections = {name.partition(".")[0] for name in SETTINGS if "." in name}
    variables = set(re.findall(r"\bLLEM_[A-Z_]+[A-Z]\b", text_of(page)))
    dotted = re.findall(r"(?<![\w./-])[a-z_]+\.[a-z_]+(?![\w.(/])", " ".join(in_backticks(page)))
    settings = {name for name in dotted if name.partition(".")[0] in sections and not name.endswith(".yaml")}
    assert (variables - SETTINGS - examples, settings - SETTINGS) == (set(), set())


@OF_EVERY_PAGE
def test_every_name_is_in_the_code(page: Path) -> None:
    words = set(re.findall(r"(?<![\w-])[A-Za-z]\w*_\w+", " ".join(in_backticks(page))))
    assert {word for word in words - words_of_the_code() - THEIRS if not IN_FORMULAS.fullmatch(word)} == set()


@OF_EVERY_PAGE
def test_every_file_of_ours_exists(page: Path) -> None:
    ours = r"(?:src|tests|docs|scripts|examples|benchmarks|requirements|docker)/[\w./-]*\w"
    named = {name for code in in_backticks(page) for name in re.findall(rf"(?<![\w./-]){ours}", code)}
    missing = {name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()}
    assert missing - {"examples/FILE"} == set()
