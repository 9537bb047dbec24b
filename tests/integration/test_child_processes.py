"""Children are really started, crashed, hung and killed here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import children
from child_runs import QUICK, TESTS, Runs, is_gone, task_in, wait_until
from llenergymeasure.core.progress import PromptsDone, StepStarted, ignore_events
from llenergymeasure.runners.child import Entry, Failed, from_line, to_line
from llenergymeasure.runners.supervise import ChildFailedError, ChildGroup, Interrupt, RunInterruptedError


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_result_comes_back_from_a_session_of_its_own_without_the_main_module(runs: Runs) -> None:
    who = runs.run(children.identity)
    assert who["group"] == who["session"] == runs.pids[0] != os.getpgid(0)
    assert who["main_file"] is None
    assert "pytest" not in who["main_names"]
    assert not who["torch_loaded"]
    assert is_gone(who["pid"])


def test_child_works_in_the_same_directory_on_the_same_modules_and_has_no_input(runs: Runs) -> None:
    who = runs.run(children.identity)
    assert who["directory"] == os.getcwd()
    assert who["import_path"] == [str(entry) for entry in sys.path]
    assert who["input"] == ""


@pytest.mark.parametrize("size", [256, 256_000, 700_000, 50_000_000])
def test_results_of_every_size_come_back_whole(runs: Runs, size: int) -> None:
    assert runs.run(children.blob, size) == children.text_of(size)
    assert sorted(path.name for path in runs.work_dir.rglob("*.*")) == ["child0.log", "job.json"]


def test_large_result_comes_through_the_pipe_when_its_file_cannot_be_written(runs: Runs) -> None:
    assert runs.run(children.blob_without_directory, 5_000_000) == children.text_of(5_000_000)


def test_every_event_arrives_in_order(runs: Runs) -> None:
    assert runs.run(children.report_events, 5_000) == 5_000
    assert runs.events == [PromptsDone("measure", number, 5_000, 0, 0.0) for number in range(5_000)]


def test_event_that_cannot_be_sent_costs_neither_the_next_one_nor_the_result(runs: Runs) -> None:
    assert runs.run(children.report_an_event_that_cannot_be_sent) == "result"
    assert runs.events == [StepStarted("measure")]
    assert "Could not send" in runs.log()


def test_what_is_no_message_is_not_taken_for_one(runs: Runs) -> None:
    assert runs.run(children.garbage) == "result"
    assert runs.events == []


def test_replies_that_are_no_messages_are_one_reason(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildFailedError) as caught:
        runs.run(children.garbage_and_no_result)
    lines = len(children.NO_MESSAGES) + 1
    assert str(caught.value) == (
        f"ended with exit code 0 and without a result; {lines} lines among its replies were no messages, "
        "the first: b'progress: 10 %\\n'"
    )
    assert "Traceback" not in "".join(capfd.readouterr())


def test_observer_that_blocks_does_not_hold_up_the_child(tmp_path: Path) -> None:
    release = threading.Event()
    group = ChildGroup([task_in(tmp_path / "child", children.report_events, 20_000)], QUICK)
    results: list[Any] = []
    block = lambda event: release.wait(120) and None  # noqa: E731
    thread = threading.Thread(target=lambda: results.extend(group.run(block, Interrupt())))
    thread.start()
    assert wait_until(lambda: (tmp_path / "child.log").exists() and group.children[0].has_exited())
    release.set()
    thread.join(120)
    assert results == ["20000"]


def test_exception_arrives_with_type_message_and_traceback(runs: Runs) -> None:
    with pytest.raises(ChildFailedError, match="reduce the batch") as caught:
        runs.run(children.raise_backend_error, "reduce the batch")
    assert caught.value.error_type == "BackendError"
    assert "raise_backend_error" in caught.value.traceback
    assert "raise_backend_error" in runs.log()


@pytest.mark.parametrize(
    ("function", "argument", "words"),
    [
        (children.segfault, None, r"segmentation fault \(signal 11\)"),
        (children.kill_itself, None, r"killed by signal 9 \(SIGKILL\): out of memory\?"),
        (children.leave_silently, 7, "ended with exit code 7 and without a result"),
        (children.leave_silently, 0, "ended with exit code 0 and without a result"),
        (children.die_with_forked_worker, None, "killed by signal 9"),
    ],
)
def test_crash_is_an_error_that_names_its_cause(runs: Runs, function: Entry, argument: object, words: str) -> None:
    with pytest.raises(ChildFailedError, match=words) as caught:
        runs.run(function, argument)
    assert caught.value.error_type == "Crash"


def test_segfault_leaves_the_python_stack_in_the_log(runs: Runs) -> None:
    with pytest.raises(ChildFailedError):
        runs.run(children.segfault)
    assert "in segfault" in runs.log()


def test_exhausted_memory_is_a_memory_error(runs: Runs) -> None:
    with pytest.raises(ChildFailedError) as caught:
        runs.run(children.exhaust_memory, 1 << 31)
    assert caught.value.error_type == "MemoryError"


def test_output_of_python_and_of_programs_is_kept(runs: Runs) -> None:
    with pytest.raises(ChildFailedError):
        runs.run(children.print_then_fail, "the reason")
    assert "from Python" in runs.log()
    assert "from a program it started" in runs.log()
    assert "\ufffd no text" in runs.log()  # bytes that are no UTF-8 stay as they are
    assert "ValueError: the reason" in runs.log()


def test_endless_output_fills_neither_the_pipe_nor_the_disk(runs: Runs) -> None:
    with pytest.raises(ChildFailedError, match="took longer than 3 s"):
        runs.run(children.print_for_ever, task_s=3)
    log = runs.log()
    assert len(log) < 5_000_000
    assert "bytes left out" in log


@pytest.mark.parametrize("function", [children.hang, children.hang_deaf_to_sigterm])
def test_hung_child_is_stopped_after_its_time(runs: Runs, function: Entry) -> None:
    with pytest.raises(ChildFailedError, match="experiment_timeout_seconds") as caught:
        runs.run(function, task_s=0.5)
    assert caught.value.error_type == "Timeout"
    assert is_gone(runs.pids[0])


def test_result_counts_though_the_child_cannot_end(runs: Runs) -> None:
    assert runs.run(children.hang_at_exit) == "result"
    assert is_gone(runs.pids[0])


def test_workers_die_with_a_child_that_took_too_long(runs: Runs) -> None:
    with pytest.raises(ChildFailedError):
        runs.run(children.hang_with_workers, task_s=2)
    ids = (runs.work_dir / "child0" / "ids").read_text()
    assert all(is_gone(int(pid)) for pid in ids.split())


def test_first_interrupt_lets_the_child_tear_down(runs: Runs) -> None:
    interrupt = Interrupt()
    group = runs.group(children.tidy_up_on_sigterm, None)
    threading.Thread(
        target=lambda: wait_until(lambda: runs.events == [StepStarted("measure")]) and interrupt.request()
    ).start()
    with pytest.raises(RunInterruptedError):
        group.run(runs.events.append, interrupt)
    assert (runs.work_dir / "child0" / "tidy").read_text() == "unloaded"


def test_second_interrupt_does_not_wait(runs: Runs) -> None:
    interrupt = Interrupt()
    group = runs.group(children.hang_deaf_to_sigterm, None)
    interrupt.request()
    interrupt.request()
    with pytest.raises(RunInterruptedError):
        group.run(ignore_events, interrupt)
    assert is_gone(group.children[0].pid)


def test_children_pass_the_barrier_together(runs: Runs) -> None:
    group = runs.group(children.meet_and_tell_time, 0.0, 0.3, 0.1)
    came_s, went_on_s = zip(*map(json.loads, group.run(ignore_events, Interrupt())), strict=True)
    assert max(came_s) <= min(went_on_s)


def test_death_before_the_barrier_ends_the_whole_run(runs: Runs) -> None:
    group = runs.group(children.meet_or_die, False, True, task_s=30)
    with pytest.raises(ChildFailedError, match="exit code 3"):
        group.run(ignore_events, Interrupt())
    assert all(is_gone(child.pid) for child in group.children)


@pytest.mark.parametrize("entry", ["__main__:local", "no_such_module:run", "children:no_such_function"])
def test_entry_that_a_fresh_interpreter_cannot_import_is_refused(runs: Runs, entry: str) -> None:
    task = replace(task_in(runs.work_dir / "child0", children.identity), entry=entry)
    with pytest.raises(ChildFailedError, match=r"No module named|has no") as caught:
        ChildGroup([task], QUICK).run(ignore_events, Interrupt())
    assert caught.value.error_type in ("ImportError", "ModuleNotFoundError")


@pytest.mark.parametrize(
    ("code", "error_type", "words"),
    [
        ("import time; time.sleep(3600)", "Timeout", "its imports took longer than 2 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "Crash", r"killed by signal 9"),
        (
            "import os; print('no CUDA here', flush=True); os._exit(4)",
            "Crash",
            r"exit code 4 .*\(last output: no CUDA here",
        ),
    ],
)
def test_engine_that_cannot_be_imported_ends_the_run_and_not_the_study(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, code: str, error_type: str, words: str
) -> None:
    (runs.work_dir / "engine_in_trouble.py").write_text(code)
    monkeypatch.syspath_prepend(runs.work_dir)
    task = replace(task_in(runs.work_dir / "child0", children.identity), preload=("json", "engine_in_trouble"))
    group = ChildGroup([task], replace(QUICK, imports_s=2) if error_type == "Timeout" else QUICK)
    with pytest.raises(ChildFailedError, match=words) as caught:
        group.run(ignore_events, Interrupt())
    assert caught.value.error_type == error_type
    assert is_gone(group.children[0].pid)


def test_engine_whose_import_fails_is_left_to_the_run_to_complain_about(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs.work_dir / "broken_engine.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(runs.work_dir)
    task = replace(task_in(runs.work_dir / "child0", children.identity), preload=("broken_engine", "no_such_engine"))
    (result,) = ChildGroup([task], QUICK).run(ignore_events, Interrupt())
    assert "pid" in json.loads(result)
    assert "libcudart" in runs.log()


def test_imports_may_be_silent_for_longer_than_a_task(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs.work_dir / "large_engine.py").write_text("import time; time.sleep(4.0)")
    monkeypatch.syspath_prepend(runs.work_dir)
    task = replace(task_in(runs.work_dir / "child0", children.identity), preload=("large_engine",))
    assert ChildGroup([task], QUICK, silence_s=3.0).run(ignore_events, Interrupt())


def test_time_in_which_the_launcher_was_stopped_does_not_count(tmp_path: Path) -> None:
    """As by Ctrl-Z: the child is in a session of its own, goes on, and has its result long before the launcher."""
    process = subprocess.Popen(
        [sys.executable, "-c", script(tmp_path, "work_for", argument=0.2, task_s=1.0)],
        stdout=subprocess.PIPE,
        text=True,
    )
    ids = tmp_path / "ids"
    assert wait_until(lambda: ids.exists() and len(ids.read_text().split()) == 2)
    process.send_signal(signal.SIGSTOP)
    assert wait_until(lambda: all(is_gone(int(pid)) for pid in ids.read_text().split()))
    time.sleep(1.0)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=120)[0].splitlines()[-1] == "['\"result\"']"


@pytest.mark.parametrize("why", ["time", "interrupt"])
def test_a_result_that_comes_while_the_launcher_gives_up_counts(runs: Runs, why: str) -> None:
    interrupt = Interrupt()
    group = runs.group(children.finish_on_sigterm, None, task_s=1.0 if why == "time" else 60)
    if why == "interrupt":
        threading.Thread(target=lambda: wait_until(lambda: bool(runs.events)) and interrupt.request()).start()
    assert group.run(runs.events.append, interrupt) == ['"result"']


NO_MORE_THREADS = """
    import sys, threading
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import children
    from child_runs import Runs
    from llenergymeasure.runners.supervise import ChildFailedError

    class Refused(threading.Thread):
        started_before = 0

        def start(self):
            if Refused.started_before == {allowed}:
                threading.stack_size(1 << 46)  # more than any machine has: the system really refuses
            Refused.started_before += 1
            super().start()

    threading.Thread = Refused
    try:
        Runs(Path.cwd()).run(children.identity)
    except ChildFailedError as error:
        print(error.error_type, error)
"""


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_thread_that_cannot_be_started_leaves_no_child_and_lets_the_interpreter_end(
    tmp_path: Path, allowed: int
) -> None:
    code = textwrap.dedent(NO_MORE_THREADS).format(tests=str(TESTS), allowed=allowed)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("Crash a child process could not be started: the thread llem-child could not")
    assert "ulimit -u" in done.stdout
    assert done.stderr == ""


def test_error_and_its_message_survive_their_way_unchanged() -> None:
    error = ChildFailedError("Crash", "killed", "trace")
    copied = error.__reduce__()[0](*error.__reduce__()[1])
    assert (copied.error_type, str(copied), copied.traceback) == ("Crash", "killed", "trace")
    failed = Failed("A", "two\nlines, and a file called \udcff", "trace")
    assert from_line(to_line(failed)) == failed
    assert Failed("A", "b") == Failed("A", "b", "")


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    print("main runs", flush=True)
    from pathlib import Path
    from llenergymeasure.runners.supervise import Interrupt
    from llenergymeasure.runners.process import ChildTask
    from llenergymeasure.runners.supervise import ChildGroup, Patience
    group = "a name of the main module"
    Path({work_dir!r}, "job.json").write_text("{argument}")
    task = ChildTask(Path({work_dir!r}), Path({work_dir!r}, "child.log"), entry="children:{function}")
    print(ChildGroup([task], Patience(), {task_s}).run(lambda event: print(event, flush=True), Interrupt()), flush=True)
"""


def script(tmp_path: Path, function: str, argument: object = "", task_s: float | None = None) -> str:
    values = {
        "tests": str(TESTS),
        "function": function,
        "work_dir": str(tmp_path),
        "argument": argument,
        "task_s": task_s,
    }
    return textwrap.dedent(SCRIPT).format(**values)


@pytest.mark.parametrize("how", ["script", "stdin", "command", "module"])
def test_unguarded_main_module_runs_once(tmp_path: Path, how: str) -> None:
    code = script(tmp_path, "identity")
    (tmp_path / "unguarded.py").write_text(code)
    arguments = {"script": ["unguarded.py"], "stdin": ["-"], "command": ["-c", code], "module": ["-m", "unguarded"]}
    done = subprocess.run(
        [sys.executable, *arguments[how]],
        input=code if how == "stdin" else None,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.count("main runs") == 1
    assert '"main_names": [' in done.stdout
    assert '"group"' not in done.stdout.partition("main_names")[2]  # a name of the unguarded module


def test_child_and_its_workers_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", script(tmp_path, "hang_with_workers")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert [parent.stdout.readline().strip() for _ in range(2)] == ["main runs", str(StepStarted("measure"))]
    child, worker, detached, forked = (int(pid) for pid in (tmp_path / "ids").read_text().split())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: all(is_gone(pid) for pid in (child, worker, detached, forked)))
