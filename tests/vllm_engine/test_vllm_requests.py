"""Many requests on one loaded vLLM: limits of their own, refusals, the instants of tokens and what each step held."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from energy_fakes import measured, steady
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.metrics.request_energy import share_energy
from llenergymeasure.domain.metrics import PhaseBreakdown, PhaseMetrics
from llenergymeasure.exceptions import BackendError
from pytorch_models import requests
from vllm_models import NEEDS_VLLM, experiment, loaded, save_wide_model

if TYPE_CHECKING:
    from llenergymeasure.core.backends.vllm.backend import VLLMBackend

pytestmark = NEEDS_VLLM

TEXTS = ("the quick brown fox", "why?", "a", "Heat flows from warm to cold.", "one two three", "kettle")
ROUNDING_S = 1e-6
"""Between two readings of one clock."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMBackend]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        with loaded(experiment(save_wide_model(tmp_path_factory.mktemp("llama")))) as engine:
            yield engine


def test_every_request_has_its_own_limits(engine: VLLMBackend) -> None:
    limits = [3, 16, 1, 7, 2, 5]
    asked = [
        GenerationRequest(request.index, request.token_ids, limit, limit)
        for request, limit in zip(requests(*TEXTS), limits, strict=True)
    ]
    output = engine.generate(asked)
    assert [one.output_tokens for one in output.requests] == limits
    assert [one.index for one in output.requests] == list(range(6))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (GenerationRequest(4, (), 1), "prompt 4 has no tokens"),
        (GenerationRequest(4, (999_999,), 1), "prompt 4 holds token id 999999"),
        (GenerationRequest(4, (2,) * 250, 16), "prompt 4 has 250 tokens and may grow by 16, but the model takes 256"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_and_the_engine_goes_on(
    engine: VLLMBackend, request_: GenerationRequest, said: str
) -> None:
    with pytest.raises(BackendError, match=said):
        engine.generate([*requests("a"), request_])
    assert engine.generate(requests("a", minimum=16)).requests[0].output_tokens == 16


def test_more_requests_than_fit_wait_and_every_step_tells_its_batch(engine: VLLMBackend) -> None:
    before_s = SystemClock().now()
    output = engine.generate(requests(*TEXTS, limits=[12, 6], minimum=6))
    after_s = SystemClock().now()
    steps = list(output.steps or ())
    assert max(step.requests for step in steps) == 4
    assert sum(step.prefill_tokens for step in steps) == sum(len(text) for text in TEXTS)
    assert sum(step.decode_tokens for step in steps) == sum(one.output_tokens - 1 for one in output.requests)
    ends_s = [step.ended_s for step in steps]
    assert ends_s == sorted(set(ends_s))
    for one in output.requests:
        assert one.token_times_s is not None
        assert set(one.token_times_s) <= set(ends_s)
        assert before_s - ROUNDING_S <= one.started_s - one.queued_s <= one.started_s < one.token_times_s[0]
        assert one.token_times_s[-1] <= after_s + ROUNDING_S
    first, waiting = output.requests[:4], output.requests[4:]
    first_end_s = min(one.token_times_s[-1] for one in first if one.token_times_s)
    assert all(one.started_s <= ends_s[0] for one in first)
    assert all(one.started_s - one.queued_s <= ends_s[0] < first_end_s <= one.started_s for one in waiting)


def test_prompts_in_the_cache_of_prefixes_are_told_and_steps_hold_the_rest(engine: VLLMBackend) -> None:
    """Two wait until the first four, of the same beginning, are through; all share the window's joules by the steps."""
    alike = [GenerationRequest(k, (*range(5, 205), 5 + k), 4 + 3 * k, 4 + 3 * k) for k in range(6)]
    before_s = SystemClock().now() - ROUNDING_S
    output = engine.generate(alike)
    after_s = SystemClock().now() + ROUNDING_S
    outputs, steps = output.requests, list(output.steps or ())
    assert [one.cached_tokens > 0 for one in outputs[-2:]] == [True, True]
    computed = sum(one.input_tokens - one.cached_tokens for one in outputs)
    assert sum(step.prefill_tokens for step in steps) == computed
    trace = steady(100.0, before_s, after_s, step_s=0.0001)
    energy = measured({"GPU-0": trace}, before_s, after_s, total_j=1000.0)
    phases = PhaseBreakdown(
        prefill=PhaseMetrics(time_sec=1.0, tokens=computed, energy_j=0.1),
        decode=PhaseMetrics(time_sec=1.0, tokens=1, energy_j=0.1),
    )
    shares = share_energy(outputs, energy, phases, output.steps)
    assert shares.energy_j is not None, shares.reason
    assert math.fsum(shares.energy_j) == 1000.0
    assert min(shares.energy_j) > 0.0


def test_a_stall_in_a_step_appears_in_the_gap_before_its_tokens(engine: VLLMBackend) -> None:
    """The scheduler is made to sleep before one step, as a machine would stall."""
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    schedule, calls, stall_s = scheduler.schedule, 0, 0.25

    def stalling(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            time.sleep(stall_s)
        return schedule(*arguments, **keywords)

    scheduler.schedule = stalling
    try:
        output = engine.generate(requests("ab", "cde", limits=[12], minimum=12))
    finally:
        del scheduler.schedule
    for one in output.requests:
        gaps_s = [late - early for early, late in pairwise(one.token_times_s or ())]
        assert gaps_s[5] >= stall_s  # others may be as long on a busy machine


def test_a_cache_of_prefixes_that_cannot_be_emptied_is_an_error(engine: VLLMBackend) -> None:
    """A request that was begun and left holds its blocks, whose prefill the next pass would have for nothing."""
    from vllm import SamplingParams

    core = engine.llm.llm_engine
    core.add_request("left", {"prompt_token_ids": list(range(5, 45))}, SamplingParams(max_tokens=8))
    core.step()
    with pytest.raises(BackendError, match="cache of prefixes cannot be emptied"):
        engine.generate(requests("a"))
    while core.has_unfinished_requests():
        core.step()
    assert engine.generate(requests("a")).requests[0].output_tokens > 0
