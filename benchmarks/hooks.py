"""What measuring costs the measured: the hook in every generation step, the power sampler, and the harness as a whole.

The hook is timed by itself, in microseconds per step; so is the sampler, in processor time per round. The throughput
of a loop that a person would write by hand is compared with that of the harness, round by round, with a control beside
it: the same bare loop twice. A machine whose control is off by a per cent cannot tell a ratio of 0.99 from 1.

The sampler reads the GPU's real NVML where there is one, else the scripted one of the tests through the real binding.

    python -m benchmarks.hooks [--quick] [--check]
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import torch
from benchmarks.report import Figure, main
from tests.nvml.scripted import ScriptedGpu, ScriptedNvml, have_compiler

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend
from llenergymeasure.core.backends.pytorch.generation import (
    DeviceStepTimer,
    HostStepTimer,
    StepHook,
    StepTimer,
    pad_left,
)
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.meter import Meter, NoEnergyBackend
from llenergymeasure.core.energy.sampler import GpuReader, PowerSampler
from llenergymeasure.core.energy.strategies import CounterStrategy
from llenergymeasure.core.energy.types import EnergyBackend, MeterOptions
from llenergymeasure.core.gpu.driver import GpuDriver, GpuDriverError, all_boards, find_gpus
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.progress import ignore_events
from llenergymeasure.core.window import measure_window, split_into_batches
from llenergymeasure.datasets.loader import load_prompts

BATCH_SIZE = 8
PROMPTS = 8
OUTPUT_TOKENS = 32

HOOK_TARGET_US = 20.0
SAMPLER_TARGET_PCT = 1.0
INTERVAL_S = 0.1
"""Default of `advanced.nvml_poll_interval_ms`."""


def measure(quick: bool) -> list[Figure]:
    clock = SystemClock()
    figures = [hook_cost(clock, steps=2_000 if quick else 50_000)]
    with available_nvml() as found:
        if found is None:
            print("Neither an NVIDIA GPU nor gcc for the scripted NVML: the sampler is not measured.")
            meter: EnergyBackend = NoEnergyBackend(clock)
        else:
            nvml, what = found
            figures += sampler_cost(nvml, clock, seconds=1.0 if quick else 10.0, note=what)
            options, gpus = MeterOptions(), find_gpus([nvml.uuid(nvml.device_handle(0))], nvml)
            meter = Meter(CounterStrategy(gpus, clock, options), clock, options)
        figures += throughput_ratios(meter, clock, rounds=2 if quick else 12)
    return figures


def hook_cost(clock: SystemClock, steps: int) -> Figure:
    """One call of the hook that `generate` makes after every step, on the device that a run would use."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    timer: StepTimer = HostStepTimer(clock)
    if on_gpu:
        timer = DeviceStepTimer(
            clock,
            new_event=lambda: torch.cuda.Event(enable_timing=True),
            stream=torch.cuda.current_stream(),
            synchronize=torch.cuda.synchronize,
        )
    ids = torch.zeros((BATCH_SIZE, 100), dtype=torch.long, device=device)
    block = 500
    seconds = []
    for _ in range(steps // block):
        timer.start()
        hook = StepHook(timer, [10 * OUTPUT_TOKENS] * BATCH_SIZE, prompt_width=99)
        hook(ids, None)  # the first call sets up what the others use
        start = time.perf_counter()
        for _ in range(block):
            hook(ids, None)
        seconds.append((time.perf_counter() - start) / block)
    spread = f"95 % of blocks below {sorted(seconds)[int(0.95 * len(seconds))] * 1e6:.1f} us, on {device.type}"
    return Figure("hook per generation step", statistics.median(seconds) * 1e6, "us", HOOK_TARGET_US, spread)


@contextlib.contextmanager
def available_nvml() -> Iterator[tuple[GpuDriver, str] | None]:
    """The machine's NVML, else a scripted one; and which of the two."""
    try:
        yield open_nvml(), "real NVML"
        return
    except GpuDriverError:
        if not have_compiler():
            yield None
            return
    with tempfile.TemporaryDirectory() as directory, ScriptedNvml([ScriptedGpu.of("hopper")], Path(directory)):
        yield open_nvml(), "scripted NVML"


def sampler_cost(nvml: GpuDriver, clock: SystemClock, seconds: float, note: str) -> list[Figure]:
    """The sampler's own processor time, on one GPU at the default rate."""
    sampler = PowerSampler([GpuReader(all_boards(nvml)[0], clock)], interval_s=INTERVAL_S, clock=clock)
    sampler.start()
    clock.sleep(seconds)
    record = sampler.stop(clock.now())
    report = record.report
    record.close()
    note = f"one GPU every {INTERVAL_S * 1000:g} ms, {note}"
    return [
        Figure("sampler per round", report.cpu_s / report.ticks * 1e6, "us", None, note),
        Figure("sampler, share of a core", 100 * report.cpu_s / report.duration_s, "%", SAMPLER_TARGET_PCT, note),
    ]


def throughput_ratios(meter: EnergyBackend, clock: SystemClock, rounds: int) -> list[Figure]:
    """Seconds of the bare loop and of the harness for the same tokens, in turn."""
    config = ExperimentConfig.model_validate(
        {
            "model": "builtin/tiny-llama",
            "precision": "fp32",
            "dataset": {"synthetic": {"n": PROMPTS, "input_len": 64, "output_len": OUTPUT_TOKENS}},
            "decoder": {"preset": "deterministic", "min_new_tokens": OUTPUT_TOKENS},
            "pytorch": {"device": "auto", "batch_size": BATCH_SIZE},
        }
    )
    engine = PyTorchBackend(clock)
    prompts = load_prompts(config, engine.tokenizer(config)).prompts
    requests = [GenerationRequest(p.index, p.token_ids, OUTPUT_TOKENS, OUTPUT_TOKENS) for p in prompts]
    engine.load(config)
    try:

        def bare() -> float:
            return bare_loop_s(engine, requests)

        def harness() -> float:
            energy = measure_window(engine, requests, meter, clock, ignore_events).energy
            if energy.telemetry is not None:
                energy.telemetry.close()
            return energy.duration_sec

        bare(), harness()  # warm
        return _ratios(bare, harness, rounds)
    finally:
        engine.unload()


def _ratios(bare: Callable[[], float], harness: Callable[[], float], rounds: int) -> list[Figure]:
    """Both ratios of neighbours in time; who goes first changes from round to round."""
    harness_ratios, control_ratios = [], []
    for _, reverse in zip(range(rounds), (bool(i % 2) for i in count()), strict=False):
        order = [bare, harness, bare]
        first, middle, last = (run() for run in (reversed(order) if reverse else order))
        harness_ratios.append((first + last) / 2 / middle)
        control_ratios.append(first / last if reverse else last / first)
    tokens = PROMPTS * OUTPUT_TOKENS
    return [
        _ratio("throughput, harness : bare loop", harness_ratios, f"{tokens} tokens in {rounds} rounds"),
        _ratio("throughput, bare : bare (control)", control_ratios, "what this machine can resolve"),
    ]


def _ratio(name: str, ratios: Sequence[float], note: str) -> Figure:
    quarter = len(ratios) // 4
    low, high = sorted(ratios)[quarter], sorted(ratios)[-quarter - 1]
    return Figure(name, statistics.median(ratios), "x", None, f"middle half {low:.3f} to {high:.3f}; {note}")


def bare_loop_s(engine: PyTorchBackend, requests: Sequence[GenerationRequest]) -> float:
    """Seconds that transformers alone takes for the same batches and the same forced lengths."""
    model, decoding = engine.parts.model, engine.parts.decoding
    generation = decoding.generation_config(OUTPUT_TOKENS)
    generation.min_new_tokens = OUTPUT_TOKENS
    engine.synchronize()
    start = time.perf_counter()
    for batch in split_into_batches(requests, BATCH_SIZE):
        input_ids, attention_mask = pad_left(batch, decoding.pad_token_id, model.device)
        with torch.inference_mode():
            done = model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=generation)
            done.sequences.tolist()
    engine.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    sys.exit(main("Cost of measuring", measure))
