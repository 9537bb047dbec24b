"""`llem` on a disk that is really full: each command says so in a sentence, and nothing measured is lost."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command_line import CommandLine
from llem_process import PROMPTS, QUICK, Workplace, llem_command
from llenergymeasure.results.persistence import load_result
from mounts import fill, tmpfs

pytest.importorskip("transformers", reason="needs the pytorch extra")

EXPERIMENT = QUICK + "energy: {backend: null}\n"
STUDY = EXPERIMENT + "name: s\nsweep: {random_seed: [1, 2]}\nexecution: {n_cycles: 1, config_gap_seconds: 0}\n"

FULL = "No space left on device"
POLL_S = 0.01


@pytest.fixture
def llem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    (tmp_path / "cwd").mkdir()
    llem = CommandLine(tmp_path / "cwd", monkeypatch, capfd)
    llem.file("q.yaml", EXPERIMENT)
    llem.file("s.yaml", STUDY)
    llem.file("prompts.jsonl", PROMPTS)
    return llem


@pytest.fixture
def disk(llem: CommandLine) -> Iterator[Path]:
    """A file system of 256 KiB in the directory the command works in."""
    with tmpfs(llem.directory / "disk", "size=256k") as disk:
        yield disk


@contextmanager
def filled_during_the_first_run(disk: Path) -> Iterator[None]:
    """Fill a disk as soon as a study's first run has its process; it imports its engine for seconds then."""
    over = threading.Event()

    def watch() -> None:
        while not any(disk.glob("*/.work/run-00001/child.log")):
            if over.wait(POLL_S):
                return
        fill(disk, leave_pages=0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_a_study_shows_and_rescues_what_it_cannot_save_and_goes_on_once_there_is_room(
    llem: CommandLine, disk: Path
) -> None:
    with filled_during_the_first_run(disk):
        spoken = llem("run", "s.yaml", "-o", "disk")
    assert spoken.code == 1
    assert spoken.out.startswith("No run was completed.")
    assert "Model          builtin/tiny-llama" in spoken.out
    (rescued,) = llem.tmp.rglob("result.json")
    assert f"It was saved as {rescued} instead. 0 of 2 runs are finished and kept in disk/s_" in spoken.err
    assert load_result(rescued).output_tokens == 16

    (study,) = disk.glob("s_*")
    full = llem("run", "--resume", str(study), "--quiet")
    assert full.code == 1
    assert FULL in full.err
    assert "Traceback" not in spoken.err + full.err

    (disk / "filler").unlink()
    again = llem("run", "--resume", str(study))
    assert again.code == 0
    assert "2 completed, 0 failed, of 2 planned" in again.out


def test_a_study_with_everything_on_that_disk_prints_the_figures(
    llem: CommandLine, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    with filled_during_the_first_run(disk):
        spoken = llem("run", "s.yaml", "-o", "disk", "--json")
    assert spoken.code == 1
    *_, shown = _json_documents(spoken.out)
    assert (shown["model_name"], shown["output_tokens"]) == ("builtin/tiny-llama", 16)
    assert "Nor elsewhere: " in spoken.err
    assert not list(disk.rglob("result.json"))


def _json_documents(text: str) -> Iterator[dict[str, object]]:
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        document, end = decoder.raw_decode(text, position)
        yield document
        position = end + 1


def test_a_study_that_cannot_even_begin_says_which_file_has_no_room(llem: CommandLine, disk: Path) -> None:
    fill(disk, leave_pages=0)
    spoken = llem("run", "s.yaml", "-o", "disk", "--quiet")
    assert (spoken.code, spoken.out) == (1, "")
    assert spoken.err.startswith("Cannot write disk/s_")
    assert spoken.err.endswith(f": {FULL}. Free some space or choose another directory.\n")


def test_a_single_run_with_everything_on_that_disk_prints_the_figures(
    llem: CommandLine, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    fill(disk, leave_pages=3)
    spoken = llem("run", "q.yaml", "-o", "disk")
    assert spoken.code == 1
    assert spoken.out.startswith("Model          builtin/tiny-llama")
    assert f"{FULL}. Free some space or choose another directory. Nor elsewhere: " in spoken.err


@pytest.mark.parametrize("config", ["q.yaml", "s.yaml"])
def test_a_dry_run_for_a_full_disk_warns_and_writes_nothing(llem: CommandLine, disk: Path, config: str) -> None:
    fill(disk, leave_pages=0)
    spoken = llem("run", config, "--dry-run", "-o", "disk")
    assert spoken.code == 0
    assert spoken.out.endswith("Nothing was run.\n")
    assert "Less than 10% of the disk that holds" in spoken.err
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize(
    ("arguments", "is_on_stderr"),
    [
        ("--version", ""),
        ("--help", ""),
        ("run --help", ""),
        ("config", "Inference engines"),
        ("run q.yaml --dry-run", "Nothing was run."),
        ("run q.yaml -q", "Model          builtin/tiny-llama"),
        ("run q.yaml -q --json", '"model_name": "builtin/tiny-llama"'),
    ],
)
def test_what_stdout_does_not_take_is_on_stderr_with_one_sentence(
    tmp_path: Path, arguments: str, is_on_stderr: str
) -> None:
    workplace = Workplace(tmp_path / "place", tmp_path / "home")
    workplace.write("q.yaml", EXPERIMENT)
    done = workplace.call(["sh", "-c", f"exec {shlex.join(llem_command())} {arguments} > /dev/full"])
    assert done.returncode == 1
    assert f"Cannot write to stdout: {FULL}." in done.stderr.splitlines()[-1]
    assert is_on_stderr in done.stderr
    assert "Traceback" not in done.stderr
    assert len(workplace.results()) == (1 if "-q" in arguments else 0)
    assert ("Result         results/" in done.stderr) == ("-q" in arguments)


def test_a_list_of_results_that_stdout_does_not_take_is_one_sentence(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path / "place", tmp_path / "home")
    results = Path(__file__).parents[1] / "data" / "release_2_0"
    command = shlex.join([sys.executable, "-m", "llenergymeasure.results", str(results)])
    done = workplace.call(["sh", "-c", f"exec {command} > /dev/full"])
    assert (done.returncode, done.stderr) == (1, f"Cannot write to stdout: {FULL}.\n")
