"""Somebody sets the machine's clock while an experiment runs: its dates and durations follow the monotonic clock."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from llem_process import Workplace, preloading
from llenergymeasure.results.persistence import load_result

pytest.importorskip("transformers", reason="needs the pytorch extra")

HOUR_S = 3600

SCRIPT = """
import json, sys, time
from llenergymeasure._api import _run
from llenergymeasure import ExperimentConfig, StudyConfig

looks = [time.time() for _ in range(3)]
config = ExperimentConfig(
    model="builtin/tiny-llama", n=2, max_output_tokens=8, dataset="prompts.jsonl", output_dir="out",
    pytorch={"device": "cpu"}, energy={"backend": None}, warmup={"n_warmup": 1, "thermal_floor_seconds": 0},
)
told = []
began_s = time.monotonic()
study = _run(StudyConfig(experiments=[config]), told.append)
result = told[0]
print(json.dumps({
    "looks": looks,
    "elapsed_s": time.monotonic() - began_s,
    "study": [study.started_at.isoformat(), study.completed_at.isoformat()],
    "study_s": study.summary.total_wall_time_s,
    "result": [result.start_time.isoformat(), result.end_time.isoformat()],
    "result_s": result.duration_sec,
    "saved": study.result_files,
}))
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that sets the clock."""
    if shutil.which("gcc") is None:
        pytest.skip("the jumping clock is built with gcc, which is not installed")
    library = tmp_path_factory.mktemp("clock") / "jumping_clock.so"
    source = Path(__file__).parents[1] / "jumping_clock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_clock_that_jumps_at_every_look_changes_no_date_and_no_duration(
    tmp_path: Path, clock: Path, step_s: int
) -> None:
    workplace = Workplace(tmp_path / "place", tmp_path / "home")
    environ = {**preloading(clock), "LLEM_TEST_CLOCK_STEP": str(step_s)}
    done = workplace.call([sys.executable, "-c", SCRIPT], **environ)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [round((later - told["looks"][0]) / step_s) for later in told["looks"]] == [0, 1, 2]  # it does jump
    for span, duration_s in (("study", told["study_s"]), ("result", told["result_s"])):
        start, end = map(datetime.fromisoformat, told[span])
        assert timedelta(0) <= end - start <= timedelta(seconds=told["elapsed_s"])
        assert 0 <= duration_s <= told["elapsed_s"]
    saved = load_result(workplace.cwd / told["saved"][0])
    assert [saved.start_time.isoformat(), saved.end_time.isoformat()] == told["result"]
