"""Texts, counts, instants and ends of TensorRT-LLM, on stand-ins of both generations."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest

from llem_process import llem_command
from tensorrt_bench import TensorRTBench

CONFORMANCE = """
from llenergymeasure.core.backends.conformance import check_backend
tell([str(failure) for failure in check_backend(lambda: get_backend("tensorrt"), experiment(**{fields}))])
"""


def test_every_promise_of_an_engine_is_kept(either: TensorRTBench) -> None:
    assert either.told(CONFORMANCE.format(fields={})) == []


def test_an_engine_that_is_built_ahead_keeps_them_too(builder: TensorRTBench) -> None:
    assert builder.told(CONFORMANCE.format(fields={"tensorrt": {"max_input_len": 64}})) == []


def test_its_greedy_tokens_are_those_of_pytorch(newest: TensorRTBench) -> None:
    """The same weights in bf16, the same ids: nothing is tokenised again, and nothing sampled."""
    texts = newest.told(
        """
texts = []
for name in ("pytorch", "tensorrt"):
    fields = {"precision": "bf16", "backend": name}
    if name == "pytorch":
        fields["pytorch"] = {"device": "cpu"}
    engine = get_backend(name)
    engine.load(experiment(**fields))
    texts.append([list(output.token_ids) for output in engine.generate(requests(12)).requests])
    engine.unload()
tell(texts)
"""
    )
    assert texts[0] == texts[1]
    assert len(texts[0][0]) == 12


def test_a_request_that_has_to_wait_starts_later_and_finds_what_the_cache_holds_of_it(newest: TensorRTBench) -> None:
    """Nothing of an earlier call is found, whose salt was another one."""
    waited, cached, again, steps, cache_mb = newest.told(
        """
engine = get_backend("tensorrt")
engine.load(experiment(tensorrt={"max_batch_size": 1}))
pair = [GenerationRequest(index, tuple(range(3, 73)), 6, 6) for index in range(2)]
(first, second), log = (output := engine.generate(pair)).requests, output.steps
again = engine.generate(pair).requests
cache_mb = engine.memory().kv_cache_mb
engine.unload()
tell([
    [second.queued_s > first.queued_s, second.started_s >= first.token_times_s[-1]],
    [first.cached_tokens, second.cached_tokens],
    [one.cached_tokens for one in again],
    [[step.requests, step.prefill_tokens, step.decode_tokens] for step in log],
    cache_mb,
])
"""
    )
    assert waited == [True, True]
    assert cached == again == [0, 64]
    assert steps == [[1, 70, 0], *[[1, 0, 1]] * 5, [1, 6, 0], *[[1, 0, 1]] * 5]
    config = json.loads((newest.model / "config.json").read_text())
    width = config["hidden_size"] // config["num_attention_heads"]
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * width * 2  # keys and values, in bf16
    assert cache_mb == 8192 * per_token / 1e6


def test_steps_are_told_by_iterations_and_a_request_that_was_pushed_out_leaves_none(builder: TensorRTBench) -> None:
    code = """
engine = get_backend("tensorrt")
engine.load(experiment(tensorrt={"max_batch_size": 2}))
output = engine.generate(requests(4, 6, 3, 1, 4))
os.environ["TRTLLM_STANDIN_FAULT"] = "pause"
paused = engine.generate(requests(4, 6))
engine.unload()
ends = {step.ended_s for step in output.steps}
tell([
    [[step.requests, step.prefill_tokens, step.decode_tokens] for step in output.steps],
    all(ends.issuperset(one.token_times_s) for one in output.requests),
    [paused.steps, [one.output_tokens for one in paused.requests]],
])
"""
    steps, are_their_ends, paused = builder.told(code)
    assert [requests for requests, _, _ in steps] == [2] * 7 + [1] * 4
    assert [prompt for _, prompt, _ in steps] == [6, 0, 0, 0, 3, 0, 3, 3, 0, 0, 0]
    assert sum(decoded for _, _, decoded in steps) == 4 + 6 + 3 + 1 + 4 - 5
    assert are_their_ends
    assert paused == [None, [4, 6]]


def test_a_text_ends_with_its_own_end_and_not_before_its_least_length(newest: TensorRTBench) -> None:
    """The end is the token that greedy decoding takes first, so that a free text ends at once."""
    found = newest.told(
        """
import shutil, tempfile
engine = get_backend("tensorrt")
engine.load(experiment())
end = engine.generate(requests(1)).requests[0].token_ids[0]
engine.unload()
place = Path(tempfile.mkdtemp()) / "model"
shutil.copytree(sys.argv[1], place)
(place / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
engine = get_backend("tensorrt")
engine.load(experiment(model=str(place)))
free, least, forced = (engine.generate(requests(8, least=it)).requests[0] for it in (0, 3, 8))
engine.unload()
tell([[it.finish_reason, it.output_tokens, it.token_ids[-1] == end] for it in (free, least, forced)])
"""
    )
    assert found[0] == ["eos", 1, True]
    assert found[1][1] >= 3
    assert found[2][:2] == ["length", 8]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("load", "cannot be loaded by TensorRT-LLM: RuntimeError: Executor worker returned error"),
        ("generate", "out of memory while generating for 2 prompts"),
        ("silent_metrics", "told no instants of the request"),
        ("killed", "failed to generate: its worker process "),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_no_worker(newest: TensorRTBench, fault: str, said: str) -> None:
    message, children = replace(newest, environ={"TRTLLM_STANDIN_FAULT": fault}).told(
        """
import psutil
engine = get_backend("tensorrt")
def run():
    engine.load(experiment())
    engine.generate(requests(4, 4))
message = refusal(run)
engine.unload()
tell([message, len(psutil.Process().children(recursive=True))])
"""
    )
    assert said in message
    assert children == 0


def test_its_devices_are_the_first_that_cuda_shows(newest: TensorRTBench) -> None:
    bench = replace(newest, boards=3, environ={"CUDA_VISIBLE_DEVICES": "2,0"})
    planned, used, visible, too_many = bench.told(
        """
from llenergymeasure.core.backends.shared import uuids_by_nvml
engine, config = get_backend("tensorrt"), experiment()
planned = engine.plan_devices(config)
engine.load(config)
used = engine.devices()
engine.unload()
more = experiment(tensorrt={"tp_size": 2, "pp_size": 2})
tell([planned, used, uuids_by_nvml(), refusal(engine.plan_devices, more)])
"""
    )
    assert planned == used == visible[:1]
    assert len(visible) == 2
    assert "tensorrt.tp_size × pp_size: 4 GPUs are asked for, and 2 are visible" in too_many


def test_a_run_on_the_command_line_has_tokens_latencies_and_joules(newest: TensorRTBench) -> None:
    config = newest.home / "experiment.yaml"
    config.write_text(
        f"model: {newest.model}\nbackend: tensorrt\nn: 4\nmax_input_tokens: 64\nmax_output_tokens: 16\n"
        "warmup: {thermal_floor_seconds: 0}\nbaseline: {enabled: false}\ndecoder: {temperature: 0}\n"
        "measurement: {min_duration_seconds: 0.5}\n"  # longer than the counter needs for a step
    )
    done = subprocess.run(
        [*llem_command(), "run", str(config), "--output", str(newest.home / "results")],
        env=newest.environment(),
        cwd=newest.home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (newest.home / "results").rglob("result.json")
    result = json.loads(path.read_text())
    assert result["backend"] == "tensorrt"
    assert result["effective_config"]["tensorrt"]["engine"] == "PyTorch-based"
    assert result["total_energy_j"] > 0
    assert result["output_tokens"] % 64 == 0
    assert result["engine_energy_j"] > 0


def test_it_generates_in_a_notebook_whose_loop_is_running(newest: TensorRTBench) -> None:
    code = """
import asyncio
engine = get_backend("tensorrt")
engine.load(experiment())
async def cell():
    return [output.output_tokens for output in engine.generate(requests(2, 3)).requests]
counts = asyncio.run(cell())
engine.unload()
tell(counts)
"""
    assert newest.told(code) == [2, 3]
