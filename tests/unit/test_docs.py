"""The documentation says what the code does: generated parts are fresh, examples are valid, lists are complete."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llenergymeasure import exceptions
from llenergymeasure.cli import terminal
from llenergymeasure.config.loader import load_experiment_config, load_study_config
from llenergymeasure.config.user_config import UserConfig, environment_settings, load_user_config
from llenergymeasure.domain.explanations import EXPLANATIONS, explanation_of
from llenergymeasure.domain.warnings import WarningCode

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINKING = [
    *PAGES,
    *(page for part in (".", "examples", "examples/third-party", "benchmarks") for page in (ROOT / part).glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def table_rows(page: str, heading: str) -> Iterator[list[str]]:
    """Cells of the first table under a heading, its head left out."""
    _, _, rest = (DOCS / page).read_text().partition(f"{heading}\n")
    table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert table is not None, f"{page}: no table under {heading!r}"
    for line in table[0].splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def code_blocks(language: str) -> list[tuple[str, str]]:
    pages = [*PAGES, ROOT / "README.md"]
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(page.name, block) for page in pages for block in pattern.findall(page.read_text())]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_generated_parts_are_what_the_code_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "scripts" / "build_references.py")
    monkeypatch.setattr(sys, "argv", [script, "--check"])

    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")

    assert ended.value.code == 0, capsys.readouterr().out


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {link}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    assert sorted(leaves(navigation)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def leaves(navigation: object) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    elif isinstance(navigation, dict):
        for value in navigation.values():
            yield from leaves(value)
    elif isinstance(navigation, list):
        for value in navigation:
            yield from leaves(value)


@pytest.mark.parametrize(("page", "block"), code_blocks("yaml"))
def test_examples_are_valid(page: str, block: str, tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(block)
    keys = set(yaml.safe_load(block))

    if "sweep" in keys:
        assert load_study_config(file).experiments
    elif keys <= set(UserConfig.model_fields):
        load_user_config(file, {})
    else:  # an experiment, or some keys of one
        load_experiment_config(file, None if "model" in keys else {"model": "somebody/model"})


@pytest.mark.parametrize(("page", "block"), code_blocks("python"))
def test_python_examples_are_python_and_import_what_exists(page: str, block: str) -> None:
    imports = [node for node in ast.walk(ast.parse(block, page)) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if node.module is not None and node.module.startswith("llenergymeasure"):
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_every_warning_has_a_cause_and_a_remedy() -> None:
    rows = {row[0].strip("`"): row[1:] for row in table_rows("warnings.md", "## Every warning")}

    assert set(rows) == {code.value for code in WarningCode}
    assert all(len(cells) == 2 and all(cells) for cells in rows.values())
    assert explanation_of("thermal_throttling") == EXPLANATIONS[WarningCode.THERMAL_THROTTLING]
    assert explanation_of("a_code_of_a_later_release") is None


def test_every_error_is_listed() -> None:
    listed = {row[0].split("`")[1] for row in table_rows("exit-codes.md", "## Errors in Python")}
    raised = {
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, exceptions.LLEMError)
    }

    assert listed == raised


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    documented = {int(row[0]) for row in table_rows("exit-codes.md", "# Exit codes and errors")}

    assert documented == {terminal.EXIT_OK, terminal.EXIT_FAILED, terminal.EXIT_USAGE, terminal.EXIT_INTERRUPTED}


def test_environment_variables_set_what_the_page_says() -> None:
    rows = list(table_rows("environment-variables.md", "## Read by llenergymeasure"))

    for variable, setting, example in rows:
        _, sources = environment_settings({variable.strip("`"): example.strip("`")})
        (path,) = sources
        assert path in setting

    known = set(re.findall(r"`(LLEM_[A-Z_]+)`", (DOCS / "environment-variables.md").read_text()))
    assert known == {row[0].strip("`") for row in rows}


def test_every_flag_is_documented() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "llenergymeasure", "run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    page = (DOCS / "command-line.md").read_text()

    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown)) - {"--help"}:
        assert f"`{flag}`" in page, flag
