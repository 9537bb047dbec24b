"""Files of known names that somebody else has put into a study's directory: never followed, never emptied."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from llenergymeasure.atomic import make_unique_directory, open_ours
from llenergymeasure.config.grid import compute_study_design_hash
from llenergymeasure.config.models import StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.exceptions import LLEMError, PersistenceError
from llenergymeasure.results.persistence import load_result
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.manifest import Journal, load_manifest
from llenergymeasure.study.resume import find_unfinished, locked
from study_fakes import Stage, study_of

PRECIOUS = "somebody's diary\n"

Plant = Callable[[Path, Path], None]
"""Puts something at the first path that leads to, or is of the kind of, the second, the victim's."""


def directory_at(path: Path, victim: Path) -> None:
    path.mkdir()


PLANTS: dict[str, Plant] = {
    "link": lambda path, victim: path.symlink_to(victim),
    "dangling link": lambda path, victim: path.symlink_to(victim.with_name("not there yet")),
    "hard link": lambda path, victim: path.hardlink_to(victim),
    "pipe": lambda path, victim: os.mkfifo(path),
    "device": lambda path, victim: path.symlink_to("/dev/zero"),
    "directory": directory_at,
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim" / "diary"
    path.parent.mkdir()
    path.write_text(PRECIOUS)
    return path


@pytest.fixture
def unfinished(tmp_path: Path) -> Stage:
    """The directory of a study that was interrupted before its second run."""
    stage = Stage(tmp_path / "study")
    stage.directory.mkdir()
    stage.runner(study_of("a", "b")).run()
    manifest = json.loads((stage.directory / "manifest.json").read_text())
    manifest["status"] = manifest["experiments"][1]["status"] = "running"
    (stage.directory / "manifest.json").write_text(json.dumps(manifest))
    (stage.directory / manifest["experiments"][1]["result_file"]).unlink()
    return stage


def go_on(stage: Stage, study: StudyConfig | None) -> None:
    place = StudyPlace(parent=stage.directory.parent, resume=stage.directory)
    execute_study(study, place, UserConfig(), lambda result: None, stage.events.append, stage.launcher)


def assert_untouched(victim: Path) -> None:
    assert victim.read_text() == PRECIOUS
    assert [path.name for path in victim.parent.iterdir()] == [victim.name]


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
@pytest.mark.parametrize("name", [".lock", "manifest.journal.jsonl"])
@pytest.mark.parametrize("with_file", [True, False])
def test_what_is_planted_is_refused_by_name(
    unfinished: Stage, victim: Path, name: str, plant: Plant, with_file: bool
) -> None:
    path = unfinished.directory / name
    path.unlink(missing_ok=True)
    plant(path, victim)
    with pytest.raises(PersistenceError, match=name):
        go_on(unfinished, study_of("a", "b") if with_file else None)
    assert_untouched(victim)


@pytest.mark.parametrize("name", ["manifest.json", "study_summary.json", "results.parquet", "results.csv", ".work"])
def test_what_is_replaced_in_one_step_leads_nowhere_else(unfinished: Stage, victim: Path, name: str) -> None:
    path = unfinished.directory / name
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    if name == ".work":
        with pytest.raises(LLEMError, match=r"\.work"):
            go_on(unfinished, study_of("a", "b"))
    else:
        go_on(unfinished, study_of("a", "b"))
    assert_untouched(victim)


def test_a_work_directory_that_leads_elsewhere_costs_nothing_there(unfinished: Stage, victim: Path) -> None:
    (victim.parent / "run-00001").mkdir()
    (victim.parent / "run-00001" / "thesis").touch()
    (unfinished.directory / ".work").symlink_to(victim.parent)
    with pytest.raises(LLEMError, match=r"\.work"):
        go_on(unfinished, None)
    assert (victim.parent / "run-00001" / "thesis").exists()


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
@pytest.mark.parametrize("name", [".lock", "manifest.json", "manifest.journal.jsonl"])
def test_looking_for_an_unfinished_study_touches_and_waits_for_nothing(
    unfinished: Stage, victim: Path, name: str, plant: Plant
) -> None:
    path = unfinished.directory / name
    path.unlink(missing_ok=True)
    plant(path, victim)
    find_unfinished(unfinished.directory.parent, compute_study_design_hash(study_of("a", "b").experiments))
    assert_untouched(victim)


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_a_result_that_is_no_plain_file_is_an_error_and_no_wait(tmp_path: Path, victim: Path, kind: str) -> None:
    path = tmp_path / "result.json"
    PLANTS[kind](path, victim)
    with pytest.raises(PersistenceError, match=r"result\.json"):
        load_result(path)


def test_a_file_of_another_user_is_not_ours(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path = tmp_path / ".lock"
    path.write_text("theirs")
    os.chown(path, 12_345, -1)
    with pytest.raises(PersistenceError, match="another user"):
        os.close(open_ours(path, os.O_RDWR))
    assert path.read_text() == "theirs"


def test_a_lock_that_somebody_holds_is_not_emptied(tmp_path: Path) -> None:
    with locked(tmp_path):
        before = (tmp_path / ".lock").read_text()
        with pytest.raises(LLEMError, match="in use by process"), locked(tmp_path):
            pass
        assert (tmp_path / ".lock").read_text() == before != ""


def test_a_lock_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(PersistenceError, match=r"\.lock: File too large"), locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_journal_of_an_earlier_execution_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("of old\n")
    Journal(path).append(b"new")
    assert path.read_text() == "new\n"


def test_what_a_killed_execution_was_writing_is_removed_and_nothing_else(unfinished: Stage) -> None:
    directory = unfinished.directory
    half = directory / "b_pytorch_2026-01-02T03-04-05_1"
    mixed = directory / "b_pytorch_2026-01-02T03-04-05"
    for path in (half / "timeseries.parquet", half / ".result.json.0123abcd.tmp", mixed / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    kept = [directory / ".config.tmp", directory / "plots" / "outputs.jsonl", mixed / "notes.txt"]
    (directory / "plots").mkdir()
    for path in [*kept, directory / ".manifest.json.89abcdef.tmp", mixed / ".x.00000000.tmp"]:
        path.touch()
    go_on(unfinished, None)
    assert all(path.exists() for path in kept)
    assert not half.exists()
    assert not list(directory.rglob("*[0-9a-f].tmp"))
    assert load_manifest(directory).completed == 2


def test_a_directory_that_is_made_is_known_to_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    made = make_unique_directory(tmp_path / "new" / "deep", "study")
    assert {str(tmp_path), str(tmp_path / "new"), str(made.parent)} <= set(synced)
