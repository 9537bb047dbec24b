"""What children do in tests of isolated runs: the functions that a fresh interpreter imports.

`job.json` holds whatever a test gives them as their argument; what they return comes back as the result.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from llenergymeasure.core.progress import PromptsDone, StepStarted
from llenergymeasure.exceptions import BackendError
from llenergymeasure.runners.child import ParentLink


def argument_of(directory: Path) -> Any:
    return json.loads((directory / "job.json").read_text())


def identity(directory: Path, link: ParentLink) -> str:
    """Who this child is, and what its main module is."""
    main = sys.modules["__main__"]
    return json.dumps(
        {
            "pid": os.getpid(),
            "group": os.getpgid(0),
            "session": os.getsid(0),
            "main_file": getattr(main, "__file__", None),
            "main_names": sorted(vars(main)),
            "torch_loaded": "torch" in sys.modules,
            "directory": os.getcwd(),
            "import_path": sys.path,
            "input": sys.stdin.read(),
        }
    )


def report_events(directory: Path, link: ParentLink) -> str:
    count = argument_of(directory)
    for number in range(count):
        link.observe(PromptsDone("measure", number, count, 0, 0.0))
    return json.dumps(count)


def report_an_event_that_cannot_be_sent(directory: Path, link: ParentLink) -> str:
    link.observe(StepStarted("load", total=object()))  # type: ignore[arg-type]
    link.observe(StepStarted("measure"))
    return '"result"'


def blob(directory: Path, link: ParentLink) -> str:
    """As many characters as asked for, with every kind among them that JSON has to escape."""
    return json.dumps(text_of(argument_of(directory)))


def text_of(size: int) -> str:
    return ("".join(map(chr, range(128))) * (size // 128 + 1))[:size]


def blob_without_directory(directory: Path, link: ParentLink) -> str:
    """Like `blob`, after the directory it may leave files in is gone."""
    size = argument_of(directory)
    shutil.rmtree(directory)
    return json.dumps(text_of(size))


NO_MESSAGES = (
    b"progress: 10 %\n",
    b"\x00\xff\n",
    b"5\n",
    b"null\n",
    b'{"is": []}\n',
    b'{"is": "Popen"}\n',
    b'{"is": "Done", "code": 1}\n',
    b'{"is": "Done", "result": 5}\n',
    b'{"is": "Failed", "error_type": 5, "message": null}\n',
    b'{"is": "Waiting", "step": "load", "remaining_s": "long"}\n',
    b'{"is": "Waiting", "step": "load", "remaining_s": NaN}\n',
    b'{"is": "StepFinished", "step": "load", "detail": {}}\n',
    b"9" * 5_000 + b"\n",
    b"[" * 100_000 + b"\n",
)


def garbage(directory: Path, link: ParentLink) -> str:
    """Sends its launcher lines that are no messages."""
    for line in NO_MESSAGES:
        os.write(link._replies.fileno(), line)
    return '"result"'


def garbage_and_no_result(directory: Path, link: ParentLink) -> NoReturn:
    """Does the same, and breaks its own result with it."""
    for line in (*NO_MESSAGES, b'{"is": "Done", "result": '):
        os.write(link._replies.fileno(), line)
    os._exit(0)


def raise_backend_error(directory: Path, link: ParentLink) -> NoReturn:
    fail(argument_of(directory))


def fail(message: str) -> NoReturn:
    raise BackendError(message)


def segfault(directory: Path, link: ParentLink) -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError


def kill_itself(directory: Path, link: ParentLink) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leave_silently(directory: Path, link: ParentLink) -> NoReturn:
    os._exit(argument_of(directory))


def exhaust_memory(directory: Path, link: ParentLink) -> NoReturn:
    use_up_memory(argument_of(directory))


def use_up_memory(limit: int) -> NoReturn:
    """Ask for more memory than a limit in bytes allows."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    bytearray(2 * limit)
    raise AssertionError


def print_for_ever(directory: Path, link: ParentLink) -> NoReturn:
    while True:
        print("x" * 1000)


def print_then_fail(directory: Path, link: ParentLink) -> NoReturn:
    print("from Python", flush=True)
    os.system("echo from a program it started")
    sys.stdout.buffer.write(b"\xff\xfe no text\n")
    sys.stdout.flush()
    raise ValueError(argument_of(directory))


def hang(directory: Path, link: ParentLink) -> NoReturn:
    time.sleep(3600)
    raise AssertionError


def hang_deaf_to_sigterm(directory: Path, link: ParentLink) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(directory, link)


def hang_at_exit(directory: Path, link: ParentLink) -> str:
    threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
    return '"result"'


def tidy_up_on_sigterm(directory: Path, link: ParentLink) -> NoReturn:
    """Leaves a file when its `finally` runs."""
    link.observe(StepStarted("measure"))
    try:
        hang(directory, link)
    finally:
        (directory / "tidy").write_text("unloaded")


def hang_with_workers(directory: Path, link: ParentLink) -> NoReturn:
    """Starts a worker in its own group, one in a session of its own and one by fork; writes their ids."""
    sleep = [sys.executable, "-c", "import time; time.sleep(3600)"]
    workers = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    forked = os.fork()
    if forked == 0:
        time.sleep(3600)
    (directory / "ids").write_text(" ".join(map(str, [os.getpid(), *workers, forked])))
    link.observe(StepStarted("measure"))
    hang(directory, link)


def die_with_forked_worker(directory: Path, link: ParentLink) -> NoReturn:
    """Dies while a forked worker still holds every pipe open."""
    if os.fork() == 0:
        time.sleep(3600)
    kill_itself(directory, link)


def meet_and_tell_time(directory: Path, link: ParentLink) -> str:
    """Sleeps for as many seconds as asked, meets the others, tells when it had come and when it went on."""
    time.sleep(argument_of(directory))
    came_s = time.monotonic()
    link.wait_for_others()
    return json.dumps([came_s, time.monotonic()])


def meet_or_die(directory: Path, link: ParentLink) -> str:
    if argument_of(directory):
        os._exit(3)
    link.wait_for_others()
    return "null"


def leave_a_daemon(directory: Path, link: ParentLink) -> str:
    """Starts a process as daemons are started, which has no parent and a session of its own; then does as told."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writer, str(os.getpid()).encode())
            time.sleep(3600)
        os._exit(0)
    os.wait()
    (directory / "ids").write_text(f"{os.getpid()} {os.getppid()} {os.read(reader, 20).decode()}")
    link.observe(StepStarted("measure"))
    {"end": lambda: None, "crash": lambda: kill_itself(directory, link), "hang": lambda: hang(directory, link)}[
        argument_of(directory)
    ]()
    return '"result"'


def work_for(directory: Path, link: ParentLink) -> str:
    """Sleeps for as many seconds as asked, and has its result."""
    (directory / "ids").write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(argument_of(directory))
    return '"result"'


def finish_on_sigterm(directory: Path, link: ParentLink) -> str:
    """Has its result at the very moment when it is asked to end."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    link.observe(StepStarted("measure"))
    while not asked.is_set():
        time.sleep(0.01)
    return '"result"'
