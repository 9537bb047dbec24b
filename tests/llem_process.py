"""The installed `llem` as a process of its own, with a home, a temporary directory and a user config of its own."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

QUICK = """\
model: builtin/tiny-llama
n: 2
max_output_tokens: 8
dataset: prompts.jsonl
pytorch: {device: cpu}
warmup: {n_warmup: 1, thermal_floor_seconds: 0}
baseline: {enabled: false}
"""
"""An experiment that any machine with transformers runs in seconds."""

PROMPTS = '{"prompt": "Heat flows from warm to cold."}\n{"prompt": "Name three rivers."}\n'

TIMEOUT_S = 240

_OF_THE_DISK = re.compile(r"^Less than 10% of the disk that holds .* is free \(.*\)\.\n", re.MULTILINE)


def but_for_the_disk(said: str) -> str:
    """What was said, but for how full the disk is that these tests happen to run on."""
    return _OF_THE_DISK.sub("", said)


def preloading(library: Path) -> dict[str, str]:
    """Variables that load a library before all others, also from a directory with a space in its name."""
    known = filter(None, [str(library.parent), os.environ.get("LD_LIBRARY_PATH")])
    return {"LD_PRELOAD": library.name, "LD_LIBRARY_PATH": os.pathsep.join(known)}


def llem_command() -> list[str]:
    """The installed script beside this Python, else the module."""
    script = Path(sys.executable).with_name("llem")
    return [str(script)] if script.exists() else [sys.executable, "-m", "llenergymeasure"]


@dataclass
class Workplace:
    """A directory to run in, and the places a process might write to.

    Args:
        root: Holds all of them.
        home: Shared between workplaces, so that the built-in model is made once.
        environ: Further environment variables.
    """

    root: Path
    home: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cwd, self.tmp = self.root / "cwd", self.root / "tmp"
        self.cwd.mkdir(parents=True)
        self.tmp.mkdir()
        self.write("prompts.jsonl", PROMPTS)
        self.write("q.yaml", QUICK)

    def write(self, name: str, text: str) -> Path:
        path = self.cwd / name
        path.write_text(text)
        return path

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process here: no GPU, no settings of whoever runs the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLEM_", "XDG_", "HF_"))}
        own = {"HOME": str(self.home), "TMPDIR": str(self.tmp), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}
        return {**kept, **own, **self.environ}

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `llem` to its end, without a terminal."""
        return self.call([*llem_command(), *arguments], **environ)

    def call(self, command: Sequence[str], said: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run any command to its end, with `said` on its standard input."""
        return subprocess.run(
            command,
            cwd=self.cwd,
            env={**self.variables, **environ},
            input=said,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def results(self) -> list[Path]:
        """Every result below the working directory."""
        return sorted(self.cwd.rglob("result.json"))

    def leftovers(self) -> list[str]:
        """Files in the temporary directory, and half-written ones in the working directory.

        PyTorch makes an empty directory `torchinductor_…` when it is imported; that one is not ours.
        """
        left = [path for path in self.tmp.rglob("*") if not path.name.startswith("torchinductor_")]
        left += [
            path for path in self.cwd.rglob("*") if path.name.startswith(".") and path.suffix in (".tmp", ".partial")
        ]
        complete = {result.parent for result in self.results()}
        left += [path.parent for path in self.cwd.rglob("*.parquet") if path.parent not in complete]
        return [str(path.relative_to(self.root)) for path in left]


@dataclass(frozen=True)
class TerminalRun:
    """What a run on a terminal came to.

    Args:
        code: Exit code.
        text: All that was written to the terminal.
        signals_sent: How many of the signals were sent.
    """

    code: int
    text: str
    signals_sent: int


def run_on_terminal(
    workplace: Workplace,
    command: Sequence[str],
    signals: Sequence[tuple[str, signal.Signals]] = (),
    **environ: str,
) -> TerminalRun:
    """Run a command with a pseudo-terminal as its stdin, stdout and stderr.

    Args:
        workplace: Where.
        command: The command and its arguments.
        signals: Texts to wait for, one after the other, and the signal to send when each appears.
        environ: Further environment variables.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        command,
        cwd=workplace.cwd,
        env={**workplace.variables, **environ},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    seen, searched_to, sent = b"", 0, 0
    while chunk := _read(controller):
        seen += chunk
        while sent < len(signals) and (found := seen.find(signals[sent][0].encode(), searched_to)) >= 0:
            searched_to = found + 1
            process.send_signal(signals[sent][1])
            sent += 1
    os.close(controller)
    return TerminalRun(process.wait(TIMEOUT_S), seen.decode(errors="replace").replace("\r\n", "\n"), sent)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError as error:
        if error.errno == errno.EIO:  # how Linux says that nobody has the terminal open any more
            return b""
        raise
