"""Variables of tqdm in the environment: those that it can use stay, others must not keep an engine from its import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

DRAW = """\
import os
from llenergymeasure.cli import drop_unusable_bar_settings

drop_unusable_bar_settings()
from tqdm import tqdm

with tqdm(total=1) as bar:
    bar.clear()
print([name for name in os.environ if name.startswith("TQDM_")])
"""


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("TQDM_NCOLS", "abc", "invalid literal for int() with base 10: 'abc'"),
        ("TQDM_ASCII", "3", "integer division or modulo by zero"),
        ("TQDM_GUI", "1", "has no attribute 'sp'"),
    ],
)
def test_what_tqdm_cannot_use_is_left_out_and_told(name: str, value: str, reason: str) -> None:
    done = python("-c", DRAW, **{name: value})
    assert done.stdout == "[]\n"
    assert done.stderr.startswith(f"{name}: ignored, for tqdm cannot use them: ")
    assert reason in done.stderr


def test_what_tqdm_can_use_stays() -> None:
    done = python("-c", DRAW, TQDM_NCOLS="40")
    assert done.stdout == "['TQDM_NCOLS']\n"
    assert "ignored" not in done.stderr


def test_every_command_sees_to_it() -> None:
    assert python("-m", "llenergymeasure", "--help", TQDM_NCOLS="abc").stderr.startswith("TQDM_NCOLS: ignored")
