"""What is released: the two archives hold the package and nothing else, and the wheel works where nothing else is.

Builds and installs as a user would, so it asks the package index; without one these tests are skipped, or fail where
parts are required.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from llenergymeasure.constants import VERSION

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "llenergymeasure"
INDEX_TIMEOUT_S = 240


@dataclass(frozen=True)
class Released:
    """The two archives of a release."""

    wheel: Path
    sdist: Path


def pip(python: Path, *arguments: str) -> None:
    """Run pip with the user's own cache; skip the test where no package index answers."""
    environ = {name: value for name, value in os.environ.items() if name not in {"XDG_CACHE_HOME", "PYTHONPATH"}}
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=INDEX_TIMEOUT_S)
    offline = ("Failed to establish a new connection", "Temporary failure in name resolution")
    if (
        done.returncode != 0
        and any(sign in done.stderr for sign in offline)
        and not os.environ.get("LLEM_TEST_REQUIRE")
    ):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr


def fresh_environment(directory: Path) -> Path:
    """Python of a new environment."""
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    return directory / "bin" / "python"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """Source archive, and the wheel that is built from it alone."""
    directory = tmp_path_factory.mktemp("release")
    python = fresh_environment(directory / "build")
    pip(python, "install", "--quiet", "build", "hatchling")
    command = [str(python), "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,), (sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return Released(wheel, sdist)


@pytest.fixture(scope="module")
def installed(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel and its base dependencies."""
    python = fresh_environment(tmp_path_factory.mktemp("clean") / "env")
    pip(python, "install", "--quiet", str(released.wheel))
    return python.parent


def llem(programs: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    command = [str(programs / "llem"), *arguments]
    return subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True)


def packaged() -> set[str]:
    """Every file of the package, as git would take it, relative to `src`."""
    files = (path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(SOURCE.parent)) for path in files}


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(released: Released) -> None:
    names = set(zipfile.ZipFile(released.wheel).namelist())
    info = f"llenergymeasure-{VERSION}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    assert names == packaged() | about
    data = {"datasets/builtin/aienergyscore.jsonl", "builtin_models/tiny_llama/tokenizer.json", "py.typed"}
    assert {f"llenergymeasure/{name}" for name in data} < names


def test_the_source_archive_holds_what_the_wheel_is_built_from(released: Released) -> None:
    with tarfile.open(released.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
    assert names == {f"src/{name}" for name in packaged()} | beside


def test_the_wheel_says_what_the_source_says(released: Released) -> None:
    archive = zipfile.ZipFile(released.wheel)
    said = Parser().parsestr(archive.read(f"llenergymeasure-{VERSION}.dist-info/METADATA").decode())
    assert (said["Name"], said["Version"], said["Requires-Python"]) == ("llenergymeasure", VERSION, ">=3.10")
    assert said["License-Expression"] == "MIT"
    requirements = [Requirement(text) for text in said.get_all("Requires-Dist")]
    assert all(requirement.specifier for requirement in requirements), "a dependency without a floor"


def test_the_wheel_answers_without_any_engine(installed: Path, tmp_path: Path) -> None:
    version, config = llem(installed, tmp_path, "--version"), llem(installed, tmp_path, "config")
    assert (version.returncode, version.stdout) == (0, f"llem {VERSION}\n")
    assert config.returncode == 0
    assert 'pip install "llenergymeasure[pytorch]"' in config.stdout


def test_a_dry_run_of_the_wheel_reads_its_own_prompts_and_model(installed: Path, tmp_path: Path) -> None:
    dry = llem(installed, tmp_path, "run", "--model", "builtin/tiny-llama", "--device", "cpu", "--dry-run")
    assert "Prompts      100 of aienergyscore" in dry.stdout
    assert "weights worked out from the config's dimensions" in dry.stdout
    assert dry.returncode == 1, "without an engine the run would be refused, and so is its dry run"
    assert "the pytorch backend needs torch" in dry.stderr
    assert list(tmp_path.iterdir()) == []
