"""The GitHub workflows can run: they parse, what they call exists, and what they use is pinned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from check_release import main as check_release

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def jobs(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return found


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in jobs(workflow).values():
        yield from job["steps"]


def commands(workflow: Path) -> str:
    return "\n".join(step["run"] for step in steps(workflow) if "run" in step)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
class TestEveryWorkflow:
    def test_it_may_only_read_unless_a_job_says_otherwise(self, workflow: Path) -> None:
        assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}

    def test_every_job_has_a_time_limit_and_a_name(self, workflow: Path) -> None:
        assert [name for name, job in jobs(workflow).items() if "timeout-minutes" not in job] == []

    def test_every_step_does_one_thing(self, workflow: Path) -> None:
        assert [step for step in steps(workflow) if ("run" in step) == ("uses" in step)] == []

    def test_every_action_is_pinned_to_a_commit_whose_release_is_named(self, workflow: Path) -> None:
        used = re.findall(r"uses: (.+)", workflow.read_text())
        assert [line for line in used if not PINNED.fullmatch(line)] == []

    def test_a_checkout_leaves_no_credentials_behind(self, workflow: Path) -> None:
        checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
        assert [step for step in checkouts if step.get("with", {}).get("persist-credentials") is not False] == []

    def test_nothing_that_others_write_is_put_into_a_command(self, workflow: Path) -> None:
        """An expression is text in the script; an environment variable is not."""
        assert "${{" not in commands(workflow)

    def test_a_command_whose_output_is_piped_fails_its_step(self, workflow: Path) -> None:
        """The runner's own shell looks at the last command of a pipe alone."""
        shell = yaml.safe_load(workflow.read_text()).get("defaults", {}).get("run", {}).get("shell")
        piped = re.search(r"[^|]\|[^|]", commands(workflow))
        assert shell == "bash" or piped is None

    def test_every_make_target_exists(self, workflow: Path) -> None:
        called = set(re.findall(r"\bmake ([a-z][\w-]*)", commands(workflow)))
        assert called - TARGETS == set()

    def test_every_file_of_ours_that_is_named_exists(self, workflow: Path) -> None:
        text = commands(workflow)
        named = set(re.findall(r"(?<![\w/.-])((?:scripts|tests|docker|examples|requirements|\.ci)/[\w./-]+)", text))
        named |= {f"{module.replace('.', '/')}.py" for module in re.findall(r"-m (benchmarks\.\w+)", text)}
        assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_python_that_is_promised_is_tested_and_tried() -> None:
    promised = set(re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text()))
    tested = re.findall(r'"(3\.\d+)"', (ROOT / ".github/workflows/ci.yml").read_text())
    assert promised - set(tested) == set()
    assert promised == set(jobs(ROOT / ".github/workflows/release.yml")["try"]["strategy"]["matrix"]["python"])


def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    allowed = {
        (workflow.stem, name): job["permissions"]
        for workflow in WORKFLOWS
        for name, job in jobs(workflow).items()
        if "permissions" in job
    }
    assert allowed == {("release", "publish"): {"id-token": "write"}}


def test_images_are_of_the_kinds_that_can_be_built() -> None:
    kinds = re.search(r"docker/build ([\w|]+) ", (ROOT / "docker/build").read_text())
    assert kinds is not None
    matrix = jobs(ROOT / ".github/workflows/images.yml")["image"]["strategy"]["matrix"]["kind"]
    assert set(matrix) == set(kinds[1].split("|"))


def test_images_are_pushed_for_a_tag_of_this_version_alone() -> None:
    pushing = [step for step in steps(ROOT / ".github/workflows/images.yml") if "if" in step]
    assert [step["if"] for step in pushing] == ["github.ref_type == 'tag'"] * 2
    assert "check_release.py" in pushing[0]["run"]
    assert "docker push" in pushing[1]["run"]


def release(directory: Path, code: str, citation: str, changelog: str) -> Path:
    (directory / "src/llenergymeasure").mkdir(parents=True)
    (directory / "src/llenergymeasure/constants.py").write_text(f'VERSION: Final = "{code}"\n')
    (directory / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {citation}\n")
    (directory / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{changelog}\n\n## [1.0.0] - 2026-01-01\n")
    return directory


def test_a_release_needs_one_version_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ready = release(tmp_path / "ready", "2.1.0", "2.1.0", "2.1.0] - 2026-12-01")
    assert check_release("v2.1.0", ready) == 0
    early = release(tmp_path / "early", "2.1.0", "2.0.0", "2.1.0] - unreleased")
    assert check_release("v2.1.0", early) == 1
    assert capsys.readouterr().out.splitlines() == [
        "CITATION.cff names 2.0.0, the tag is v2.1.0",
        "CHANGELOG.md names 1.0.0, the tag is v2.1.0",
    ]


def test_the_citation_names_the_version_of_the_code() -> None:
    code = re.search(r'^VERSION: Final = "(.+)"', (ROOT / "src/llenergymeasure/constants.py").read_text(), re.MULTILINE)
    assert code is not None
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == code[1]
