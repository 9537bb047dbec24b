"""vLLM through the command line, its engine in a process of its own: what the result says, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from llem_process import TIMEOUT_S, Workplace, llem_command, run_on_terminal
from vllm_models import NEEDS_VLLM, save_wide_model

pytestmark = NEEDS_VLLM

CONFIG = """\
model: builtin/tiny-llama
backend: vllm
n: 2
dataset: prompts.jsonl
max_output_tokens: 8
decoder: {temperature: 0, min_new_tokens: 8}
vllm: {max_num_seqs: 2, enforce_eager: true, max_model_len: 1024}
passthrough_kwargs: {dtype: float32}
warmup: {n_warmup: 1, thermal_floor_seconds: 0}
baseline: {enabled: false}
energy: {backend: null}
"""

OWN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def workplace(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    place = Workplace(tmp_path, home, OWN_PROCESS)
    place.tmp = tmp_path / "deep" / ("directory" * 12)  # too long for sockets, which vLLM would make there
    place.tmp.mkdir(parents=True)
    place.write("v.yaml", CONFIG)
    return place


def processes_of(place: Workplace) -> list[str]:
    """What runs with the workplace's home in its environment, zombies left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(place.home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.name()}")
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found


def test_a_run_gives_its_result_and_leaves_no_process_and_no_file(workplace: Workplace) -> None:
    done = workplace.run("run", "v.yaml", "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["backend"] == "vllm"
    effective = result["effective_config"]
    assert (effective["precision"], effective["architecture"]) == ("fp32", "LlamaForCausalLM")
    asked = {"max_num_seqs": 2, "enforce_eager": True, "max_model_len": 1024}
    assert {name: effective["vllm"][name] for name in asked} == asked
    assert (effective["vllm"]["engine_process"], effective["vllm"]["attention_backend"]) == ("own", "CPU_ATTN")
    assert result["output_tokens"] == 16
    latencies = result["latency_stats"]
    assert (latencies["ttft_ms"]["count"], latencies["itl_ms"]["count"]) == (2, 14)
    assert 0 < latencies["itl_ms"]["min"] <= latencies["ttft_ms"]["max"] < latencies["e2e_ms"]["max"]
    assert result["kv_cache_mb"] == pytest.approx(1073.7, abs=0.1)
    assert "INFO" not in done.stderr  # vLLM's own log is not the user's
    assert processes_of(workplace) == []
    assert workplace.leftovers() == []


def test_an_interrupted_run_leaves_no_process(workplace: Workplace) -> None:
    workplace.write("long.yaml", CONFIG.replace("max_output_tokens: 8", "max_output_tokens: 500"))
    workplace.write(
        "long.yaml", (workplace.cwd / "long.yaml").read_text() + "measurement: {min_duration_seconds: 60}\n"
    )
    run = run_on_terminal(workplace, [*llem_command(), "run", "long.yaml"], [("Measuring", signal.SIGINT)])
    assert (run.code, run.signals_sent) == (130, 1)
    assert processes_of(workplace) == []


def engine_processes(pid: int) -> list[psutil.Process]:
    """Engine cores below a process; their titles have taken the place of their environment."""
    return [child for child in psutil.Process(pid).children(recursive=True) if "EngineCor" in child.name()]


def test_the_engines_process_ends_with_a_killed_run(workplace: Workplace) -> None:
    run = subprocess.Popen(
        [*llem_command(), "run", "v.yaml"], cwd=workplace.cwd, env=workplace.variables, stderr=subprocess.DEVNULL
    )
    while not (cores := engine_processes(run.pid)):
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(cores, timeout=TIMEOUT_S)
    for core in alive:
        core.kill()
    assert alive == []


KILLED = """\
import sys
import psutil
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.backends.registry import get_backend
from llenergymeasure.exceptions import BackendError


def main():
    config = ExperimentConfig.from_yaml("v.yaml")
    engine = get_backend("vllm")
    engine.load(config)
    workers = [child for child in psutil.Process().children(recursive=True) if "EngineCor" in child.name()]
    for worker in workers:
        worker.kill()
    try:
        engine.generate([GenerationRequest(0, (5, 6, 7), 8, 8)])
    except BackendError as error:
        print(len(workers), "killed:", error)
    engine.unload()
    print([child.name() for child in psutil.Process().children(recursive=True) if "EngineCor" in child.name()])


if __name__ == "__main__":
    main()
"""


def test_an_engine_process_that_is_killed_is_an_error_and_not_a_wait_for_ever(workplace: Workplace) -> None:
    workplace.write("killed.py", KILLED)
    done = workplace.call([sys.executable, "killed.py"], PYTHONPATH=os.pathsep.join(sys.path))
    assert "1 killed: vLLM failed to generate: the engine's process has ended" in done.stdout, done.stderr
    assert done.stdout.endswith("[]\n")
    assert processes_of(workplace) == []


def test_what_breaks_in_the_engines_process_is_told_by_the_run(workplace: Workplace) -> None:
    """The quantisation has no kernels on the CPU, which only loading finds out."""
    workplace.write("fp8.yaml", CONFIG.replace("max_model_len: 1024}", "max_model_len: 1024, quantization: fp8}"))
    workplace.write("fp8.yaml", (workplace.cwd / "fp8.yaml").read_text().replace("float32", "bfloat16"))
    done = workplace.run("run", "fp8.yaml")
    assert done.returncode == 1
    assert (
        "model: builtin/tiny-llama cannot be loaded by vLLM: RuntimeError: _C::static_scaled_fp8_quant" in done.stderr
    )
    assert processes_of(workplace) == []


def test_drafted_tokens_change_no_text_and_their_number_is_not_counted(workplace: Workplace) -> None:
    model = save_wide_model(workplace.root / "model")
    texts = []
    for drafting in ("", ", speculative_config: {method: ngram, num_speculative_tokens: 3, prompt_lookup_max: 3}"):
        config = CONFIG.replace("builtin/tiny-llama", str(model)).replace("max_model_len: 1024", "max_model_len: 256")
        config = config.replace("enforce_eager: true", f"enforce_eager: true{drafting}")
        workplace.write("drafting.yaml", f"{config}max_input_tokens: 64\nmeasurement: {{save_outputs: true}}\n")
        done = workplace.run("run", "drafting.yaml", "--json", VLLM_ENABLE_V1_MULTIPROCESSING="0")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["output_tokens"] == 16
        (newest,) = {path.parent for path in workplace.results()} - {Path(known) for known, _ in texts}
        texts.append((str(newest), (newest / "outputs.jsonl").read_text()))
    assert texts[0][1] == texts[1][1]
