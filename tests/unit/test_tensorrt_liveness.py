"""What becomes of a call to TensorRT-LLM when one of its worker processes is killed: the processes are real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from child_runs import is_gone, wait_until
from llenergymeasure.core.backends.tensorrt.liveness import SERVER, Sentinel, WorkerEndedError, Workers
from llenergymeasure.core.host.processes import command_of

Process = subprocess.Popen[bytes]


def start() -> Process:
    """A process whose command line is a worker's."""
    return subprocess.Popen([sys.executable, "-S", "-c", "input()", "-m", SERVER], stdin=subprocess.PIPE)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started = [start(), start()]
    for process in started:  # the system shows a command line a moment after the program has begun
        assert wait_until(lambda pid=process.pid: SERVER in command_of(pid))  # type: ignore[misc]
    yield started
    for process in started:
        process.kill()
        process.communicate()


async def for_ever() -> str:
    await asyncio.get_running_loop().create_future()
    return "never"


async def at_once() -> str:
    return "answer"


def test_who_waits_learns_that_a_worker_was_killed(processes: list[Process]) -> None:
    workers = Workers()

    async def killed_meanwhile() -> str:
        processes[1].kill()
        return await for_ever()

    with pytest.raises(WorkerEndedError, match=rf"^its worker process {processes[1].pid} ended in the midst of it"):
        asyncio.run(workers.while_they_live(killed_meanwhile))
    with pytest.raises(WorkerEndedError):  # and whoever asks later
        asyncio.run(workers.while_they_live(for_ever))
    workers.shut_down(lambda: None)


def test_an_engine_without_a_worker_is_not_waited_for_and_its_other_workers_end(processes: list[Process]) -> None:
    workers, called = Workers(patience_s=0.01), threading.Event()

    def hang() -> None:
        called.set()
        threading.Event().wait()

    processes[0].kill()
    processes[0].wait()
    workers.shut_down(hang)
    assert called.is_set()
    assert processes[1].wait() < 0


def test_while_all_live_answers_pass_and_the_end_is_the_engine_s_own(processes: list[Process]) -> None:
    workers, ended_in = Workers(), list[threading.Thread]()
    assert asyncio.run(workers.while_they_live(at_once)) == "answer"
    workers.shut_down(lambda: ended_in.append(threading.current_thread()))
    assert ended_in == [threading.current_thread()]
    assert [process.poll() for process in processes] == [None, None]


def test_an_engine_in_this_process_has_none() -> None:
    assert asyncio.run(Workers().while_they_live(at_once)) == "answer"


DAEMON = [sys.executable, "-S", "-c", "import signal; signal.alarm(60); signal.pause()"]


def test_a_daemon_of_an_engine_ends_with_the_process_that_loaded_it_though_that_was_killed() -> None:
    code = f"""
import signal, subprocess
from llenergymeasure.core.host.processes import command_of
from llenergymeasure.core.backends.tensorrt.liveness import Sentinel
watch = Sentinel()
with watch.marking():
    print(subprocess.Popen({DAEMON!r}, start_new_session=True).pid, flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as loader:
        assert loader.stdout is not None
        daemon = int(loader.stdout.readline())
        os.kill(loader.pid, signal.SIGKILL)
        assert wait_until(lambda: is_gone(daemon))


def test_what_an_engine_leaves_ends_with_it_and_nothing_else() -> None:
    watch, stranger = Sentinel(), subprocess.Popen(DAEMON)
    with watch.marking():
        left = subprocess.Popen(DAEMON, start_new_session=True)
    watch.close()
    assert left.wait() == -signal.SIGKILL
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
