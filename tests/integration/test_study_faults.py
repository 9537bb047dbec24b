"""What becomes of a study when things go wrong, by making them go wrong. docs/reliability.md has the table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.host.processes import descendants_of
from llenergymeasure.domain.study import StudyManifest, StudyResult
from llenergymeasure.exceptions import PersistenceError, StudyError
from llenergymeasure.results.persistence import load_result, load_study
from llenergymeasure.runners.launchers import ProcessLauncher
from llenergymeasure.runners.supervise import Patience
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.manifest import load_manifest
from llenergymeasure.study.plan import GapEnded, GapStarted, RunFinished, StudyEvent
from llenergymeasure.study.runner import StudyHost, StudyRunner, StudyStoppedError
from study_fakes import study_of

TESTS = Path(__file__).parents[1]
PATIENCE = Patience(imports_s=60, teardown_s=2, exit_s=2)
TIMEOUT_S = 3.0


def launcher() -> ProcessLauncher:
    return ProcessLauncher("study_children:measure", preload=lambda backend: (), patience=PATIENCE)


def no_leftovers() -> tuple[str, ...]:
    return ()


def run(study_dir: Path, study: StudyConfig, **changes: object) -> StudyResult:
    host = StudyHost(launcher=launcher(), leftovers=no_leftovers, **changes)  # type: ignore[arg-type]
    return StudyRunner(study, study_dir, UserConfig(), host).run()


def resume(study_dir: Path, study: StudyConfig | None = None) -> tuple[StudyResult, list[StudyEvent]]:
    events: list[StudyEvent] = []
    place = StudyPlace(parent=study_dir.parent, resume=study_dir)
    result = execute_study(study, place, UserConfig(), lambda result: None, events.append, launcher=launcher())
    return result, events


def finished_results(study_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in study_dir.glob("*/result.json")}


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


FAULTS = {
    "segfault": "Crash: segmentation fault",
    "killed": "Crash: killed by signal 9 (SIGKILL): out of memory?",
    "hang": "Timeout: took longer than 3 s",
    "chatter": "Timeout: took longer than 3 s",
    "hungry": "MemoryError: ",
    "raises": "BackendError: out of memory: reduce pytorch.batch_size",
}


def test_fault_of_one_experiment_costs_that_experiment_alone(tmp_path: Path) -> None:
    execution = {"experiment_timeout_seconds": TIMEOUT_S, "max_consecutive_failures": 99}
    result = run(tmp_path, study_of("good-1", *FAULTS, "good-2", **execution))
    assert (result.summary.completed, result.summary.failed) == (2, len(FAULTS))
    assert [load_result(tmp_path / file).model_name for file in result.result_files] == ["good-1", "good-2"]
    reasons = {failed.config["model"]: f"{failed.error_type}: {failed.reason}" for failed in result.failed}
    assert {model: reasons[model][: len(reason)] for model, reason in FAULTS.items()} == FAULTS
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 6_000_000
    assert load_manifest(tmp_path).status == "completed"


def test_an_engine_that_goes_silent_is_stopped_and_one_that_talks_is_not(tmp_path: Path) -> None:
    limits = {"silence_timeout_seconds": TIMEOUT_S, "experiment_timeout_seconds": 2 * TIMEOUT_S}
    result = run(tmp_path, study_of("hang", "chatter", "good", **limits))
    reasons = {failed.config["model"]: failed.reason for failed in result.failed}
    assert reasons["hang"].startswith("gave no sign of progress for 3 s and was stopped.")
    assert reasons["chatter"].startswith("took longer than 6 s and was stopped.")
    assert result.summary.completed == 1


def test_next_experiments_process_starts_within_the_gap(tmp_path: Path) -> None:
    alive: dict[type[StudyEvent], int] = {}

    def observer(event: StudyEvent) -> None:
        if isinstance(event, (GapStarted, GapEnded)):
            alive[type(event)] = len(children_of(os.getpid()))

    result = run(tmp_path, study_of("good-1", "good-2", config_gap_seconds=1.0), observer=observer)
    assert result.summary.completed == 2
    assert alive[GapEnded] > alive[GapStarted]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, two megabytes large."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]).returncode != 0:
        pytest.skip("needs root and the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def freezable_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory that can be made unwritable, for root too, while files in it are open."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["chattr", "+i", disk], capture_output=True).returncode != 0:
        pytest.skip("needs root and a file system with immutable directories")
    subprocess.run(["chattr", "-i", disk], check=True)
    yield disk
    subprocess.run(["chattr", "-i", disk, *disk.iterdir()], check=True)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go that cannot be saved in their place."""
    refuge = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(refuge))
    return refuge


@pytest.mark.parametrize(
    ("disk", "model", "reason"),
    [("small_disk", "full", "No space left"), ("freezable_disk", "frozen", "Operation not permitted")],
)
def test_disk_that_takes_no_more_stops_the_study_and_the_result_is_rescued(
    request: pytest.FixtureRequest, elsewhere: Path, disk: str, model: str, reason: str
) -> None:
    study_dir: Path = request.getfixturevalue(disk) / "study"
    study_dir.mkdir()
    run(study_dir, study_of("good-1", name="before"))
    before = finished_results(study_dir)
    with pytest.raises(StudyStoppedError, match=reason):
        run(study_dir, study_of(model, "never"))
    (rescued,) = elsewhere.glob("*/result.json")
    assert load_result(rescued).model_name == model
    assert finished_results(study_dir) == before
    assert load_manifest(study_dir).total_experiments == 2  # readable, whatever could still be written


@pytest.fixture
def no_refuge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place for temporary files is on the full disk too: Python finds none that can be written to."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", list)


@pytest.mark.parametrize(("disk", "model"), [("small_disk", "full"), ("tmp_path", "vanish")])
@pytest.mark.usefixtures("no_refuge")
def test_result_that_can_be_saved_nowhere_is_told(request: pytest.FixtureRequest, disk: str, model: str) -> None:
    study_dir: Path = request.getfixturevalue(disk) / "study"
    study_dir.mkdir()
    told: list[StudyEvent] = []
    with pytest.raises(StudyStoppedError):
        run(study_dir, study_of(model, "never"), observer=told.append)
    (finished,) = (event for event in told if isinstance(event, RunFinished))
    assert finished.result is not None
    assert finished.result.model_name == model
    assert "No usable temporary directory" in (finished.error or "")


def test_directory_that_cannot_be_written_is_an_error_before_anything_runs(freezable_disk: Path) -> None:
    subprocess.run(["chattr", "+i", freezable_disk], check=True)
    with pytest.raises(PersistenceError, match=str(freezable_disk)):
        execute_study(study_of("good"), StudyPlace(parent=freezable_disk), UserConfig(), print, launcher=launcher())


def test_full_disk_with_room_again_goes_on_where_it_stopped(small_disk: Path, elsewhere: Path) -> None:
    study_dir = small_disk / "study"
    study_dir.mkdir()
    with pytest.raises(StudyStoppedError):
        run(study_dir, study_of("good-1", "full", "good-2"))
    before = finished_results(study_dir)
    assert len(before) == 1
    (study_dir / "ballast").unlink()
    (study_dir / "ballast").mkdir()  # so that the next attempt cannot fill the disk again
    result, _ = resume(study_dir)
    assert result.summary.completed == 3
    assert before.items() <= finished_results(study_dir).items()


def test_directory_that_vanishes_stops_the_study_and_the_result_is_rescued(tmp_path: Path, elsewhere: Path) -> None:
    study_dir = tmp_path / "study"
    study_dir.mkdir()
    with pytest.raises(StudyStoppedError, match="removed or replaced"):
        run(study_dir, study_of("vanish", "never"))
    assert not study_dir.exists()
    (rescued,) = elsewhere.glob("*/result.json")
    assert load_result(rescued).model_name == "vanish"


PARENT = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from study_fakes import study_of
    from llenergymeasure.config.user_config import UserConfig
    from llenergymeasure.runners.supervise import Patience
    from llenergymeasure.runners.launchers import ProcessLauncher
    from llenergymeasure.study.execute import StudyPlace, execute_study
    patience = Patience(teardown_s=2, exit_s=2)
    launcher = ProcessLauncher("study_children:measure", preload=lambda backend: (), patience=patience)
    study = study_of({models}, **{execution!r})
    place = StudyPlace(parent=Path({parent!r}), resume={resume})
    execute_study(study, place, UserConfig(), lambda result: None, launcher=launcher)
"""


def start_parent(
    tmp_path: Path, *models: str, resume: Path | None = None, **execution: object
) -> subprocess.Popen[str]:
    code = textwrap.dedent(PARENT).format(
        tests=str(TESTS),
        models=", ".join(map(repr, models)),
        execution=execution,
        parent=str(tmp_path),
        resume=None if resume is None else f"Path({str(resume)!r})",
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def study_dir_in(tmp_path: Path) -> Path:
    wait_for(lambda: any(tmp_path.glob("demo_*/manifest.json")))
    return next(tmp_path.glob("demo_*"))


def manifest_in(tmp_path: Path) -> StudyManifest:
    return load_manifest(study_dir_in(tmp_path))


def is_running(tmp_path: Path, position: int) -> bool:
    return manifest_in(tmp_path).experiments[position].status == "running"


def children_of(pid: int) -> list[int]:
    return [process.pid for process in descendants_of(pid)]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_killed_study_loses_one_experiment_and_leaves_no_orphan(tmp_path: Path) -> None:
    parent = start_parent(tmp_path, "good-1", "hang", "good-2")
    study_dir = study_dir_in(tmp_path)
    wait_for(lambda: is_running(tmp_path, 1) and len(children_of(parent.pid)) >= 2)
    before, family = finished_results(study_dir), children_of(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: all(is_gone(pid) for pid in family))
    assert [entry.status for entry in load_manifest(study_dir).experiments] == ["completed", "running", "pending"]
    result, _ = resume(study_dir, study_of("good-1", "hang", "good-2", experiment_timeout_seconds=TIMEOUT_S))
    assert (result.summary.completed, result.summary.failed) == (2, 1)
    assert before.items() <= finished_results(study_dir).items()


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_tears_down_and_the_study_can_go_on(tmp_path: Path, name: signal.Signals) -> None:
    parent = start_parent(tmp_path, "good-1", "hang", "good-2")
    study_dir = study_dir_in(tmp_path)
    wait_for(lambda: is_running(tmp_path, 1))
    time.sleep(0.5)
    before, family = finished_results(study_dir), children_of(parent.pid)
    parent.send_signal(name)
    _, errors = parent.communicate(timeout=120)
    assert "StudyInterruptedError" in errors
    assert "1 of 3 runs are finished" in errors
    manifest = load_manifest(study_dir)
    assert (manifest.status, manifest.completed, manifest.pending) == ("interrupted", 1, 2)
    assert finished_results(study_dir) == before
    wait_for(lambda: all(is_gone(pid) for pid in family))
    assert not (study_dir / "manifest.journal.jsonl").exists()


def test_second_signal_kills_at_once_and_the_manifest_is_valid(tmp_path: Path) -> None:
    parent = start_parent(tmp_path, "good-1", "deaf", "good-2")
    study_dir = study_dir_in(tmp_path)
    wait_for(lambda: is_running(tmp_path, 1))
    time.sleep(0.5)
    parent.send_signal(signal.SIGINT)
    parent.send_signal(signal.SIGINT)
    parent.wait(timeout=120)
    assert load_manifest(study_dir).completed == 1


def test_second_process_on_one_directory_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    first = start_parent(tmp_path, "hang")
    study_dir = study_dir_in(tmp_path)
    wait_for(lambda: is_running(tmp_path, 0))
    try:
        with pytest.raises(StudyError, match=f"in use by process {first.pid} on"):
            resume(study_dir)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()


def test_manifest_cut_short_needs_the_study_file_only(tmp_path: Path) -> None:
    study = study_of("good-1", "once", "good-2")
    run(tmp_path, study)
    before = finished_results(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:500])
    result, events = resume(tmp_path, study)
    assert result.summary.completed == 3
    assert before.items() <= finished_results(tmp_path).items()
    assert any("is not valid JSON" in str(event) for event in events)


def test_study_file_edited_between_run_and_resume_is_refused(tmp_path: Path) -> None:
    run(tmp_path, study_of("good-1"))
    before = finished_results(tmp_path)
    edited = StudyConfig(experiments=[ExperimentConfig(model="good-1", n=7)])
    with pytest.raises(StudyError, match="n: 100 -> 7"):
        resume(tmp_path, edited)
    assert finished_results(tmp_path) == before


class JumpingClock(SystemClock):
    """A wall clock that somebody sets back by ten years between any two looks at it; monotonic time goes on."""

    def __init__(self) -> None:
        self._years = iter(range(2026, 1970, -10))

    def wall(self) -> datetime:
        return datetime(next(self._years, 1970), 1, 1, tzinfo=timezone.utc)


def test_clock_that_jumps_back_changes_no_duration(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        study_of("good-1", "hang", "good-2", config_gap_seconds=0.5, experiment_timeout_seconds=TIMEOUT_S),
        clock=JumpingClock(),
    )
    assert (result.summary.completed, result.summary.failed) == (2, 1)
    assert result.summary.total_wall_time_s >= 0
    assert load_study(tmp_path) == result


def test_fault_that_passes_is_mended_by_resuming(tmp_path: Path) -> None:
    first = run(tmp_path, study_of("good-1", "once"))
    assert (first.summary.completed, first.summary.failed) == (1, 1)
    result, _ = resume(tmp_path)
    assert (result.summary.completed, result.summary.failed) == (2, 0)
