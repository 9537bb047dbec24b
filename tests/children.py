"""What children do in tests of isolated runs: the functions that a fresh interpreter imports."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from llenergymeasure.exceptions import BackendError
from llenergymeasure.runners.child import ParentLink


def echo(argument: object, link: ParentLink) -> object:
    return argument


def identity(argument: object, link: ParentLink) -> dict[str, object]:
    """Who this child is, and what its main module is."""
    main = sys.modules["__main__"]
    return {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "main_file": getattr(main, "__file__", None),
        "main_names": sorted(vars(main)),
        "torch_loaded": "torch" in sys.modules,
    }


def report_events(argument: int, link: ParentLink) -> int:
    for number in range(argument):
        link.observe(number)
    return argument


def blob(argument: int, link: ParentLink) -> bytes:
    """`argument` bytes that do not compress."""
    return bytes(range(256)) * (argument // 256)


def blob_without_directory(argument: tuple[Path, int], link: ParentLink) -> bytes:
    """Like `blob`, after the directory it may leave files in is gone."""
    directory, size = argument
    shutil.rmtree(directory)
    return blob(size, link)


def raise_backend_error(argument: str, link: ParentLink) -> None:
    raise BackendError(argument)


def segfault(argument: object, link: ParentLink) -> None:
    ctypes.string_at(0)


def kill_itself(argument: object, link: ParentLink) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave_silently(argument: int, link: ParentLink) -> None:
    os._exit(argument)


def exhaust_memory(argument: int, link: ParentLink) -> None:
    """Ask for more memory than a limit of `argument` bytes allows."""
    resource.setrlimit(resource.RLIMIT_AS, (argument, argument))
    bytearray(2 * argument)


def print_for_ever(argument: object, link: ParentLink) -> None:
    while True:
        print("x" * 1000)


def print_then_fail(argument: str, link: ParentLink) -> None:
    print("from Python", flush=True)
    os.system("echo from a program it started")
    raise ValueError(argument)


def hang(argument: object, link: ParentLink) -> None:
    time.sleep(3600)


def hang_deaf_to_sigterm(argument: object, link: ParentLink) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def hang_at_exit(argument: object, link: ParentLink) -> str:
    threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
    return "result"


def tidy_up_on_sigterm(argument: Path, link: ParentLink) -> None:
    """Leaves a file when its `finally` runs."""
    link.observe("working")
    try:
        time.sleep(3600)
    finally:
        argument.write_text("unloaded")


def hang_with_workers(argument: Path, link: ParentLink) -> None:
    """Starts a worker in its own group, one in a session of its own and one by fork; writes their ids."""
    sleep = [sys.executable, "-c", "import time; time.sleep(3600)"]
    workers = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    forked = os.fork()
    if forked == 0:
        time.sleep(3600)
    argument.write_text(" ".join(map(str, [os.getpid(), *workers, forked])))
    link.observe("started")
    time.sleep(3600)


def die_with_forked_worker(argument: object, link: ParentLink) -> None:
    """Dies while a forked worker still holds every pipe open."""
    if os.fork() == 0:
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL)


def meet_and_tell_time(argument: float, link: ParentLink) -> float:
    """Sleeps `argument` seconds, meets the others, tells when it went on."""
    time.sleep(argument)
    link.wait_for_others()
    return time.monotonic()


def meet_or_die(argument: bool, link: ParentLink) -> None:
    if argument:
        os._exit(3)
    link.wait_for_others()
