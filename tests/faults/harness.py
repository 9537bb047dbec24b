"""Kills a study, or fails its file operations, at chosen or random points; then looks at what is left, and resumes it.

What must hold whatever happens: a result that somebody was told of is on disk, the study can go on, what was finished
stays as it was byte for byte, and nothing half-written is left.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.victim import RUNS, run
from tests.llem_process import preloading

from llenergymeasure.results.persistence import load_result
from llenergymeasure.study.manifest import load_manifest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KINDS = ("kill", "ENOSPC", "EIO", "EMFILE")
FOR_EVER = 1_000_000
PAUSE_S = 0.005
PATIENCE_S = 600.0  # a study that hangs is a fault, a busy machine is none


@dataclass(frozen=True)
class Ending:
    """How a study ended, and what it had said by then."""

    code: int
    told: int
    errors: str


class Harness:
    """Studies that are to fail, each below a directory of its own in `scratch`."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._library = scratch / "failing_files.so"
        self._count = 0
        source = HERE / "failing_files.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", self._library, source, "-ldl"], check=True)

    def changes(self) -> int:
        """How many changes of files a whole study makes."""
        counted = self._scratch / "count"
        parent = self._parent()
        ending = self._run(parent, {"LLEM_FAULT_AT": "0", "LLEM_FAULT_COUNT": str(counted)})
        assert ending == Ending(0, RUNS, ""), ending
        return int(counted.read_text())

    def fail_at(self, number: int, kind: str, *, lasting: bool = False) -> None:
        """One change fails, and with `lasting` all that follow, or the process is killed there."""
        parent = self._parent()
        last = FOR_EVER if lasting else number
        fault = {"LLEM_FAULT_AT": str(number), "LLEM_FAULT_LAST": str(last), "LLEM_FAULT_KIND": kind}
        ending = self._run(parent, fault)
        assert ending.code in ((-signal.SIGKILL,) if kind == "kill" else (0, 1)), ending
        assert "Traceback" not in ending.errors, ending.errors
        self._look(parent, ending)

    def kill_after(self, delay_s: float) -> None:
        """The process is killed a while after it began."""
        parent = self._parent()
        process = self._start(parent, {}, PAUSE_S)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay_s)
        process.kill()
        out, errors = process.communicate()
        self._look(parent, Ending(process.returncode, out.count("result"), errors))

    def _parent(self) -> Path:
        self._count += 1
        parent = self._scratch / f"study-{self._count:04d}"
        (parent / "tmp").mkdir(parents=True)
        return parent

    def _start(self, parent: Path, fault: dict[str, str], pause_s: float) -> subprocess.Popen[str]:
        library = {**preloading(self._library), "LLEM_FAULT_ROOT": str(parent / "kept")} if fault else {}
        environment = {**os.environ, **library, **fault, "TMPDIR": str(parent / "tmp")}
        path = [str(ROOT / "src"), str(ROOT), str(HERE.parent)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim", str(parent / "kept"), str(pause_s)],
            env={**environment, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _run(self, parent: Path, fault: dict[str, str]) -> Ending:
        process = self._start(parent, fault, 0.0)
        out, errors = process.communicate(timeout=PATIENCE_S)
        return Ending(process.returncode, out.count("result"), errors)

    def _look(self, parent: Path, ending: Ending) -> None:
        """Every result told of is on disk, and the study can be brought to its end."""
        finished = {path: path.read_bytes() for path in parent.rglob("result.json")}
        assert len(finished) >= ending.told, (ending, sorted(finished))
        for path in finished:
            load_result(path)
        for directory in parent.glob("kept/demo_*"):
            if (directory / ".lock").exists():  # else nothing was begun
                assert run(parent, directory).summary.completed == RUNS
                assert load_manifest(directory).status == "completed"
                assert list(self._left_over(directory)) == []
        assert finished.items() <= {path: path.read_bytes() for path in parent.rglob("result.json")}.items()
        shutil.rmtree(parent)

    @staticmethod
    def _left_over(directory: Path) -> Iterator[Path]:
        yield from directory.rglob("*.tmp")
        yield from (path for path in directory.iterdir() if path.is_dir() and not (path / "result.json").exists())
        yield from (path for path in (directory / "manifest.journal.jsonl", directory / ".work") if path.exists())


def evenly(count: int, points: int) -> list[int]:
    """At most `points` numbers from 1 to `count`, evenly spread."""
    return sorted({1 + index * (count - 1) // max(points - 1, 1) for index in range(min(points, count))})


def random_delays(count: int, seed: int) -> list[float]:
    """Moments in the life of a study, in seconds after its begin."""
    source = random.Random(seed)
    return [source.uniform(0, 0.25) for _ in range(count)]
