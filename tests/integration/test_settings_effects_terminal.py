"""What the command line asks on a terminal, and how the user switches the questions off.

Of each study the first experiment takes seconds, and the second fails before anything is loaded: its model is missing.
A study of nothing but such would be refused before it begins.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the pytorch extra")

QUESTION = "Go on with it?"
LIMIT_S = 240.0

STUDY = """
name: asked
dataset: {synthetic: {n: 1, input_len: 4, output_len: 1}}
pytorch: {device: cpu}
baseline: {enabled: false}
warmup: {enabled: false, thermal_floor_seconds: 0}
experiments: [{model: builtin/tiny-llama}, {model: /no/model-2}]
execution: {n_cycles: 1, config_gap_seconds: GAP}
"""


class Terminal:
    """A terminal with `llem run study.yaml` in it."""

    def __init__(self, directory: Path, config_home: Path, **variables: str) -> None:
        self._main, side = pty.openpty()
        self.text = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llenergymeasure", "run", "study.yaml"],
            cwd=directory,
            env={**os.environ, "XDG_CONFIG_HOME": str(config_home), **variables},
            stdin=side,
            stdout=subprocess.DEVNULL,
            stderr=side,
            start_new_session=True,
        )
        os.close(side)

    def wait_for(self, text: str) -> None:
        """Read on until `text` was shown."""
        deadline_s = time.monotonic() + LIMIT_S
        while text not in self.text:
            assert time.monotonic() < deadline_s, f"{text!r} was never shown:\n{self.text}"
            assert self._read(), f"it ended without {text!r}:\n{self.text}"

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def wait_for_end(self) -> int:
        """Read on to the end; returns the exit code."""
        while self._read():
            pass
        return self._process.wait(LIMIT_S)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._main)

    def _read(self) -> bool:
        """Take what is there within a second; false when the other side is gone."""
        if not select.select([self._main], [], [], 1.0)[0]:
            return self._process.poll() is None
        try:
            data = os.read(self._main, 65536)
        except OSError:  # what Linux says of a terminal that nobody holds open any more
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


class Desk:
    """A directory with a study that was begun and not finished."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "work"
        self.directory.mkdir()
        self._config_home = tmp_path / "config"
        self._terminals: list[Terminal] = []

    def study(self, gap_s: float = 0.0, *, begun: bool = False) -> None:
        (self.directory / "study.yaml").write_text(STUDY.replace("GAP", str(gap_s)))
        if begun:
            assert self.open().wait_for_end() == 1
            assert len(self.studies()) == 1

    def settings(self, text: str) -> None:
        path = self._config_home / "llenergymeasure" / "config.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def open(self, **variables: str) -> Terminal:
        self._terminals.append(Terminal(self.directory, self._config_home, **variables))
        return self._terminals[-1]

    def studies(self) -> list[Path]:
        return list((self.directory / "results").glob("asked_*/manifest.json"))

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def unfinished(manifest: Path) -> None:
    """As if the study had been killed before its last run."""
    manifest.write_text(manifest.read_text().replace('"status": "completed"', '"status": "interrupted"', 1))


@pytest.mark.parametrize(("answer", "studies"), [("\n", 1), ("n\n", 2)])
def test_an_unfinished_study_is_offered_and_the_answer_followed(desk: Desk, answer: str, studies: int) -> None:
    desk.study(begun=True)
    unfinished(desk.studies()[0])
    terminal = desk.open()
    terminal.wait_for(QUESTION)
    terminal.type(answer)
    terminal.wait_for_end()
    assert len(desk.studies()) == studies


@pytest.mark.parametrize("how", ["setting", "variable"])
def test_prompt_switched_off_asks_nothing_and_begins_anew(desk: Desk, how: str) -> None:
    desk.study(begun=True)
    unfinished(desk.studies()[0])
    if how == "setting":
        desk.settings("ui: {prompt: false}\n")
    terminal = desk.open(**({"LLEM_NO_PROMPT": "1"} if how == "variable" else {}))
    terminal.wait_for_end()
    assert QUESTION not in terminal.text
    assert len(desk.studies()) == 2


def test_enter_skips_a_gap_where_prompts_are_on(desk: Desk) -> None:
    desk.study(gap_s=3600.0)
    terminal = desk.open()
    terminal.wait_for("Enter skips it")
    terminal.type("\n")
    assert terminal.wait_for_end() == 1
    assert "2 runs" in terminal.text


def test_enter_skips_nothing_where_prompts_are_off(desk: Desk) -> None:
    desk.study(gap_s=3600.0)
    desk.settings("ui: {prompt: false}\n")
    terminal = desk.open()
    terminal.wait_for("Gap between runs: 1 h 00 m")
    assert "Enter" not in terminal.text


def test_enter_ends_the_wait_of_a_single_run_and_the_result_says_so(desk: Desk) -> None:
    (desk.directory / "study.yaml").write_text(
        "{model: builtin/tiny-llama, n: 1, dataset: {synthetic: {n: 1, input_len: 4, output_len: 2}},"
        " pytorch: {device: cpu}, baseline: {enabled: false}, warmup: {n_warmup: 1, thermal_floor_seconds: 60}}"
    )
    terminal = desk.open()
    terminal.wait_for("cooling (warmup.thermal_floor_seconds; Enter skips)")
    terminal.type("\n")
    assert terminal.wait_for_end() == 0
    (path,) = desk.directory.rglob("result.json")
    assert "wait_skipped: a wait was ended by hand with " in path.read_text()
