"""Children at work on the functions of `children`, below one directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llenergymeasure.runners.child import Entry
from llenergymeasure.runners.process import ChildTask
from llenergymeasure.runners.supervise import ChildGroup, Interrupt, Patience

TESTS = Path(__file__).parent
QUICK = Patience(imports_s=60, teardown_s=2, exit_s=2)


def path_of(function: Entry) -> str:
    return f"{function.__module__}:{function.__name__}"


def task_in(directory: Path, function: Entry, argument: object = None) -> ChildTask:
    directory.mkdir(exist_ok=True)
    (directory / "job.json").write_text(json.dumps(argument))
    return ChildTask(directory, directory.with_suffix(".log"), entry=path_of(function))


class Runs:
    """Runs functions in children below one directory and remembers their process ids and events."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.events: list[Any] = []
        self.pids: list[int] = []

    def group(self, function: Entry, *arguments: object, task_s: float | None = 60) -> ChildGroup:
        tasks = [
            task_in(self.work_dir / f"child{index}", function, argument) for index, argument in enumerate(arguments)
        ]
        return ChildGroup(tasks, QUICK, task_s)

    def run(
        self,
        function: Entry,
        argument: object = None,
        task_s: float | None = 60,
        interrupt: Interrupt | None = None,
    ) -> Any:
        group = self.group(function, argument, task_s=task_s)
        group.start()
        self.pids.append(group.children[0].pid)
        (result,) = group.run(self.events.append, interrupt or Interrupt())
        return json.loads(result)

    def log(self, index: int = 0) -> str:
        return (self.work_dir / f"child{index}.log").read_text(encoding="utf-8", errors="replace")


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # ended, and waiting for an init that nobody runs here


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    deadline_s = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True
