"""One study over two engines, each in an environment of its own: pytorch in a container, vLLM in this Python."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docker.daemon import Daemon, running_daemon, why_not
from tests.docker.image import build_image

from llem_process import Workplace, llem_command
from llenergymeasure.results.persistence import load_result
from scripted_rapl import beside_rapl
from vllm_models import NEEDS_VLLM

pytestmark = NEEDS_VLLM

IMAGE = "llem-test/torch-beside-vllm:1"
WATTS = 50.0
TOKENS, TIMEOUT_S = 256, 500

STUDY = f"""\
name: side-by-side
model: builtin/tiny-llama
sweep: {{backend: [pytorch, vllm]}}
n: 4
dataset: prompts.jsonl
precision: bf16
max_output_tokens: {TOKENS}
decoder: {{preset: deterministic, min_new_tokens: {TOKENS}}}
pytorch: {{device: cpu, batch_size: 2}}
vllm: {{max_num_seqs: 2, enforce_eager: true, max_model_len: 1024}}
warmup: {{n_warmup: 1, thermal_floor_seconds: 0}}
baseline: {{enabled: false}}
execution: {{n_cycles: 1}}
"""
PROMPTS = "".join(f'{{"prompt": "{text}"}}\n' for text in ("Heat flows.", "Name three rivers.", "Kettle.", "Why?"))


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon with an image of this Python's torch."""
    if (reason := why_not()) is not None:
        (pytest.fail if "dockerd" in os.environ.get("LLEM_TEST_REQUIRE", "") else pytest.skip)(reason)
    with running_daemon(tmp_path_factory.mktemp("docker")) as running:
        monkeypatch.setenv("DOCKER_HOST", running.address)
        build_image(IMAGE, extras=("pytorch",))
        yield running


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_two_engines_side_by_side_have_equal_tokens_and_joules_that_add_up(tmp_path: Path, daemon: Daemon) -> None:
    """On a processor that draws 50 W by its counter, which containers do not see."""
    environ = {
        "DOCKER_HOST": daemon.address,
        "LLEM_RUNNER_PYTORCH": f"docker:{IMAGE}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }
    (tmp_path / "home").mkdir()
    place = Workplace(tmp_path / "place", tmp_path / "home", environ)
    place.write("study.yaml", STUDY)
    place.write("prompts.jsonl", PROMPTS)
    command = beside_rapl(WATTS, *llem_command(), "run", "study.yaml", "--no-gaps")
    study = subprocess.run(
        command, cwd=place.cwd, env=place.variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert study.returncode == 0, study.stderr
    results = [load_result(path) for path in place.results()]
    ran = [(result.backend, result.runner) for result in results]
    assert ran == [("pytorch", f"docker:{IMAGE}"), ("vllm", "local")]
    assert {result.output_tokens for result in results} == {4 * TOKENS}
    assert len({result.input_tokens for result in results}) == 1
    assert all(result.avg_tokens_per_second > 0 for result in results)
    counted = results[1]
    assert counted.total_energy_j == pytest.approx(WATTS * counted.total_inference_time_sec, rel=0.1)
    assert counted.requests is not None
    assert counted.requests.energy_j is not None, counted.requests.energy_reason
    assert math.fsum(counted.requests.energy_j) == counted.total_energy_j
    table = study.stdout[study.stdout.index("Configuration") :]
    for engine in ("pytorch", "vllm"):
        assert any(line.startswith(engine) for line in table.splitlines())
    assert daemon.containers() == []
