from __future__ import annotations

import json
import os
import queue
import resource
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config_strategies import configs
from fakes import EPOCH, VirtualClock
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.domain.experiment import compute_measurement_config_hash
from llenergymeasure.domain.study import ExperimentManifestEntry
from llenergymeasure.exceptions import PersistenceError, StudyError
from llenergymeasure.study.manifest import (
    JOURNAL_FILE,
    SNAPSHOT_DELAY_S,
    Journal,
    ManifestWriter,
    after_in_background,
    create_study_dir,
    load_manifest,
    read_journal,
)
from llenergymeasure.study.plan import plan_runs
from llenergymeasure.study.resume import load_resumable_study, locked

ENTRY = ExperimentManifestEntry(config_hash="a" * 16, config_summary="a / pytorch", cycle=1)


def study_of(models: int = 2, cycles: int = 2, **execution: object) -> StudyConfig:
    return StudyConfig(
        experiments=[ExperimentConfig(model=f"model-{number}") for number in range(models)],
        name="demo",
        execution=ExecutionConfig(n_cycles=cycles, **execution),  # type: ignore[arg-type]
    )


def hash_of(model: int) -> str:
    return compute_measurement_config_hash(ExperimentConfig(model=f"model-{model}"))


def on_disk(study_dir: Path) -> dict[str, object]:
    return json.loads((study_dir / "manifest.json").read_text())


class Later:
    """What was asked to be done later; a test says when that is."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, act: Callable[[], None]) -> Callable[[], None]:
        self.waiting.append((seconds, act))
        return self.waiting.clear

    def pass_(self) -> None:
        ((_, act),) = self.waiting
        self.waiting.clear()
        act()


def test_new_manifest_lists_every_run_as_pending(tmp_path: Path) -> None:
    ManifestWriter(study_of(), tmp_path, clock=VirtualClock())
    manifest = load_manifest(tmp_path)
    assert (manifest.study_name, manifest.status, manifest.started_at) == ("demo", "running", EPOCH)
    assert (manifest.total_experiments, manifest.completed, manifest.failed, manifest.pending) == (4, 0, 0, 4)
    assert [(entry.config_hash, entry.cycle) for entry in manifest.experiments] == [
        (hash_of(0), 1),
        (hash_of(0), 2),
        (hash_of(1), 1),
        (hash_of(1), 2),
    ]
    assert manifest.experiments[0].config_summary == "model-0 / pytorch / bf16"


def test_transitions_are_in_the_file_at_once_while_the_study_is_small(tmp_path: Path) -> None:
    clock = VirtualClock()
    writer = ManifestWriter(study_of(), tmp_path, clock=clock)
    writer.mark_running(hash_of(0), 1)
    assert on_disk(tmp_path)["experiments"][0]["status"] == "running"
    clock.sleep(60)
    writer.mark_completed(hash_of(0), 1, "a/result.json", "f" * 64)
    writer.mark_running(hash_of(1), 2)
    writer.mark_failed(hash_of(1), 2, "BackendError", "no memory")
    done, failed = (on_disk(tmp_path)["experiments"][index] for index in (0, 3))
    assert (done["status"], done["result_file"], done["dataset_sha256"]) == ("completed", "a/result.json", "f" * 64)
    assert done["completed_at"] > done["started_at"]
    assert (failed["error_type"], failed["error_message"]) == ("BackendError", "no memory")
    counts = {name: on_disk(tmp_path)[name] for name in ("completed", "failed", "pending")}
    assert counts == {"completed": 1, "failed": 1, "pending": 2}


@pytest.mark.parametrize(
    ("end", "status", "is_dated"),
    [
        ("mark_study_completed", "completed", True),
        ("mark_study_failed", "failed", True),
        ("mark_interrupted", "interrupted", False),
    ],
)
def test_end_of_a_study_leaves_one_complete_file(tmp_path: Path, end: str, status: str, is_dated: bool) -> None:
    writer = ManifestWriter(study_of(), tmp_path)
    writer.mark_running(hash_of(0), 1)
    getattr(writer, end)()
    manifest = load_manifest(tmp_path)
    assert manifest.status == status
    assert (manifest.completed_at is not None) == is_dated
    assert manifest.experiments[0].status == "pending"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_run_that_failed_and_is_run_again_loses_its_error(tmp_path: Path) -> None:
    writer = ManifestWriter(study_of(), tmp_path)
    writer.mark_failed(hash_of(0), 1, "Crash", "segmentation fault")
    writer.mark_running(hash_of(0), 1)
    entry = writer.entry(hash_of(0), 1)
    assert (entry.status, entry.error_type, entry.error_message) == ("running", None, None)


def test_manifest_alone_holds_the_whole_study(tmp_path: Path) -> None:
    study = study_of(config_gap_seconds=5.0)
    ManifestWriter(study, tmp_path)
    kept = load_manifest(tmp_path).study
    again = StudyConfig.model_validate_json(json.dumps(kept))
    assert again == study
    assert [run.key for run in plan_runs(again)] == [run.key for run in plan_runs(study)]


def test_large_manifest_follows_within_seconds_and_the_reader_is_never_behind(tmp_path: Path) -> None:
    later = Later()
    writer = ManifestWriter(study_of(models=400, cycles=1), tmp_path, after=later)
    writer.mark_completed(hash_of(0), 1, "a/result.json")
    assert on_disk(tmp_path)["completed"] == 0
    assert load_manifest(tmp_path).completed == 1
    writer.mark_running(hash_of(2), 1)
    assert [seconds for seconds, _ in later.waiting] == [SNAPSHOT_DELAY_S]
    later.pass_()
    assert on_disk(tmp_path)["completed"] == 1
    assert (tmp_path / JOURNAL_FILE).read_bytes() == b""  # nor does it grow with the study
    writer.mark_completed(hash_of(1), 1, "b/result.json")
    writer.mark_interrupted()
    assert on_disk(tmp_path)["completed"] == 2
    assert later.waiting == []


def test_what_happens_while_a_snapshot_is_written_stays_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Later()
    writer = ManifestWriter(study_of(models=400, cycles=1), tmp_path, after=later)
    writer.mark_completed(hash_of(0), 1, "a/result.json")
    sync, threads = os.fsync, []

    def fsync(descriptor: int) -> None:
        if not threads:  # another thread, while this one writes the snapshot
            threads.append(threading.Thread(target=writer.mark_completed, args=(hash_of(1), 1, "b/result.json")))
            threads[0].start()
            threads[0].join()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    ((_, snapshot),) = later.waiting
    snapshot()
    assert on_disk(tmp_path)["completed"] == 1
    assert load_manifest(tmp_path).completed == 2
    assert (writer.completed, writer.entry(hash_of(1), 1).status) == (2, "completed")


def test_snapshot_that_comes_after_the_end_of_the_study_changes_nothing(tmp_path: Path) -> None:
    later = Later()
    writer = ManifestWriter(study_of(models=400, cycles=1), tmp_path, after=later)
    writer.mark_completed(hash_of(0), 1, "a/result.json")
    ((_, belated),) = later.waiting
    writer.mark_study_completed()
    before = (tmp_path / "manifest.json").read_bytes()
    belated()
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_what_is_done_later_is_done_in_another_thread_unless_it_is_cancelled() -> None:
    threads_before = threading.active_count()
    threads: queue.SimpleQueue[int] = queue.SimpleQueue()
    after_in_background(3600.0, lambda: threads.put(0))()
    after_in_background(0.0, lambda: threads.put(threading.get_ident()))
    assert threads.get(timeout=60) not in (0, threading.get_ident())
    while threading.active_count() > threads_before:  # its last instruction
        time.sleep(0.001)


def test_every_cut_of_the_journal_gives_a_valid_state(tmp_path: Path) -> None:
    study = study_of(models=300, cycles=1)
    writer = ManifestWriter(study, tmp_path, after=Later())
    before = (tmp_path / "manifest.json").read_bytes()
    for number in range(3):
        writer.mark_completed(hash_of(number), 1, f"{number}/result.json")
    journal = (tmp_path / JOURNAL_FILE).read_bytes()
    for length in range(0, len(journal) + 1, 23):
        (tmp_path / "manifest.json").write_bytes(before)
        (tmp_path / JOURNAL_FILE).write_bytes(journal[:length])
        assert load_manifest(tmp_path).completed == sum(line.endswith(b"}}") for line in journal[:length].splitlines())
    writer.mark_interrupted()


def test_journal_of_an_earlier_execution_changes_nothing_it_does_not_know(tmp_path: Path) -> None:
    writer = ManifestWriter(study_of(models=300, cycles=1), tmp_path, after=Later())
    writer.mark_completed(hash_of(0), 1, "a/result.json")
    stale = (tmp_path / JOURNAL_FILE).read_bytes()
    writer.mark_interrupted()
    ManifestWriter(study_of(models=1, cycles=2), tmp_path).mark_interrupted()
    (tmp_path / JOURNAL_FILE).write_bytes(stale)
    manifest = load_manifest(tmp_path)
    assert (manifest.total_experiments, manifest.completed) == (2, 1)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": "2.0"}', '{"schema_version": "3.0"}'])
def test_damaged_manifest_is_one_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(PersistenceError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_missing_manifest_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_FILE
    journal, line = Journal(path), b'{"entry": ' + ENTRY.model_dump_json().encode() + b"}"
    journal.append(line)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 10, limits[1]))
    try:
        with pytest.raises(PersistenceError, match="File too large"):
            journal.append(line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == line + b"\n"


@pytest.mark.parametrize(
    "line", ["[]", "5", "null", "{}", '{"entry": 1}', '{"entry": null}', "[" * 100_000, "\xff", ""]
)
def test_a_line_of_the_journal_that_tells_of_no_run_is_left_out_and_the_next_is_read(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(line.encode("latin-1") + b'\n{"entry": ' + ENTRY.model_dump_json().encode() + b"}\n")
    assert list(read_journal(path)) == [ENTRY]
    assert f"{path}: line 1 is ignored" in caplog.text


def test_entries_of_a_newer_release_and_dates_without_a_zone_are_read(tmp_path: Path) -> None:
    entry = {**json.loads(ENTRY.model_dump_json()), "new_in_2_9": [1], "started_at": "2026-01-02T03:04:05"}
    path = tmp_path / JOURNAL_FILE
    path.write_text(json.dumps({"entry": entry, "also_new": True}))
    (read,) = read_journal(path)
    assert read.started_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@settings(deadline=None, max_examples=30)
@given(names=st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_every_study_name_makes_a_directory_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    root = tmp_path_factory.mktemp("studies")
    made = [create_study_dir(name or None, root, VirtualClock()) for name in names if not name or name.strip()]
    assert len(set(made)) == len(made)
    assert all(path.parent == root and path.is_dir() for path in made)


def test_study_directory_carries_name_and_date(tmp_path: Path) -> None:
    assert create_study_dir("batch sweep", tmp_path, VirtualClock()).name == "batch_sweep_2026-02-18T14-30-05"
    assert create_study_dir("batch sweep", tmp_path, VirtualClock()).name == "batch_sweep_2026-02-18T14-30-05_1"
    assert create_study_dir(None, tmp_path, VirtualClock()).name == "study_2026-02-18T14-30-05"


def test_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StudyError, match=r"in use by process \d+ on "), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("sequential", [(0, 1), (0, 2), (1, 1), (1, 2)]),
        ("interleaved", [(0, 1), (1, 1), (0, 2), (1, 2)]),
    ],
)
def test_runs_are_planned_in_the_order_asked_for(order: str, expected: list[tuple[int, int]]) -> None:
    runs = plan_runs(study_of(cycle_order=order))
    assert [run.key for run in runs] == [(hash_of(model), cycle) for model, cycle in expected]
    assert [run.position for run in runs] == [1, 2, 3, 4]


def test_shuffled_cycles_each_hold_every_experiment_once() -> None:
    runs = plan_runs(study_of(models=6, cycles=3, cycle_order="shuffled"))
    for cycle in (1, 2, 3):
        of_cycle = runs[6 * (cycle - 1) : 6 * cycle]
        assert {run.cycle for run in of_cycle} == {cycle}
        assert len({run.config_hash for run in of_cycle}) == 6


def test_experiment_given_twice_runs_once() -> None:
    twice = StudyConfig(experiments=[ExperimentConfig(model="a"), ExperimentConfig(model="a", output_dir="elsewhere")])
    assert len(plan_runs(twice)) == 1


@settings(deadline=None, max_examples=100)
@given(experiments=st.lists(configs(), min_size=1, max_size=3))
def test_any_study_reads_back_from_its_manifest_as_it_was_given(
    experiments: list[ExperimentConfig], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.getbasetemp()
    study = StudyConfig(experiments=experiments, execution=ExecutionConfig(config_gap_seconds=None))
    ManifestWriter(study, directory).mark_study_completed()
    read_back = load_resumable_study(directory)
    assert read_back == study
    assert [compute_measurement_config_hash(config) for config in read_back.experiments] == [
        compute_measurement_config_hash(config) for config in experiments
    ]
