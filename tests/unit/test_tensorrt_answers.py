"""What is made of TensorRT-LLM's answers: which iterations they name, when each token was there, and the steps."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest
from llenergymeasure.core.backends.steps import EngineStep
from llenergymeasure.core.backends.tensorrt.answers import CLOCKS_AGREE_S, Answer, generation_output
from llenergymeasure.core.clock import SystemClock

LATE_S = 0.0625
"""How late messages are here; a step takes a second."""


@dataclass(frozen=True)
class Told:
    """One request as the engine tells of it: its token `k` is there at `first + k` seconds."""

    first: int
    count: int
    prompt: int = 4
    cached: int = 0
    iterations: tuple[int | None, int | None] | None = None
    shift_s: float = 0.0
    is_single: bool = True
    breakdown: Mapping[str, Any] | None = None

    @property
    def request(self) -> GenerationRequest:
        return GenerationRequest(0, tuple(range(self.prompt)), self.count, self.count)

    @property
    def answer(self) -> Answer:
        first_s, last_s = self.first + self.shift_s, self.first + self.count - 1 + self.shift_s
        instants = {
            "arrival_time": first_s - 2,
            "first_scheduled_time": first_s - 1,
            "first_token_time": first_s,
            "last_token_time": last_s,
        }
        first, last = self.iterations or (self.first, self.first + self.count - 1)
        metrics = SimpleNamespace(
            timing_metrics=SimpleNamespace(**{name: timedelta(seconds=value) for name, value in instants.items()}),
            first_iter=first,
            last_iter=last,
        )
        completion = SimpleNamespace(
            token_ids=list(range(self.count)), finish_reason="length", request_perf_metrics=metrics
        )
        result = SimpleNamespace(outputs=[completion], cached_tokens=self.cached, time_breakdown_metrics=self.breakdown)
        came_s = array("d", (first_s + k + LATE_S for k in range(self.count)))
        return Answer(came_s, self.is_single, result)


def produced(told: Sequence[Told], *, cuts_prompts: bool | None = False) -> GenerationOutput:
    requests, answers = [each.request for each in told], [each.answer for each in told]
    return generation_output(requests, answers, (), SystemClock(), cuts_prompts)


def steps(output: GenerationOutput) -> list[EngineStep]:
    """Its steps, their ends in sixteenths of a second."""
    return [
        EngineStep(round(step.ended_s * 16) / 16, step.requests, step.prefill_tokens, step.decode_tokens)
        for step in output.steps or ()
    ]


def entries(*instants_s: float) -> list[dict[str, float]]:
    return [{"token_time": instant_s} for instant_s in instants_s]


def test_requests_of_one_iteration_are_in_one_step_which_ends_with_its_tokens() -> None:
    output = produced([Told(10, 4), Told(12, 3, prompt=7, cached=2)])
    assert steps(output) == [
        EngineStep(10.0, 1, 4, 0),
        EngineStep(11.0 + LATE_S, 1, 0, 1),
        EngineStep(12.0, 2, 5, 1),
        EngineStep(13.0, 2, 0, 2),
        EngineStep(14.0, 1, 0, 1),
    ]
    assert output.steps is not None
    ends_s = [step.ended_s for step in output.steps]
    assert [list(one.token_times_s or ()) for one in output.requests] == [ends_s[:4], ends_s[2:]]
    assert [one.cached_tokens for one in output.requests] == [0, 2]


def test_the_last_token_of_all_may_bear_the_number_of_the_one_before() -> None:
    ended = [Told(10, 4, iterations=(10, 12)), Told(11, 3, iterations=(11, 12))]
    assert steps(produced(ended)) == steps(produced([Told(10, 4), Told(11, 3)]))


def test_a_message_that_came_after_the_next_step_belongs_to_its_own() -> None:
    early = Told(12, 3, shift_s=-1 + LATE_S / 2)  # its first token, before the message of iteration 11 came
    output = produced([Told(10, 4), early])
    assert output.steps is not None
    assert [step.requests for step in output.steps] == [1, 1, 2, 2, 1]
    ends_s = [step.ended_s for step in output.steps]
    assert ends_s == sorted(ends_s)
    assert ends_s[1] == ends_s[2]


def test_an_iteration_in_which_nobody_was_is_no_step() -> None:
    assert [step.requests for step in steps(produced([Told(10, 2), Told(20, 2)]))] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "told",
    [
        [Told(10, 4, iterations=(10, 14)), Told(10, 5)],  # it was pushed out for an iteration
        [Told(10, 4, iterations=(None, None))],
        [Told(10, 4, is_single=False)],
        [Told(10, 4), Told(13, 1)],  # is it of that iteration, or of the one after, which bears no number of its own?
        [Told(10, 4), Told(12, 4, shift_s=-5)],  # an iteration before those that came before it
        [Told(10, 4, breakdown={"ctx_chunk_metrics": entries(9, 10), "step_metrics": entries(11, 12, 13)})],
    ],
)
def test_where_the_steps_of_one_request_are_not_told_there_are_none(told: list[Told]) -> None:
    output = produced(told)
    assert output.steps is None
    for one, each in zip(output.requests, told, strict=True):
        times_s = list(one.token_times_s or ())
        assert times_s == sorted(times_s)
        assert len(times_s) == each.count


@pytest.mark.parametrize(("cuts_prompts", "count"), [(None, 0), (True, 0), (False, 4)])
def test_a_prompt_may_have_been_cut_unless_it_is_told(cuts_prompts: bool | None, count: int) -> None:
    assert len(steps(produced([Told(10, 4)], cuts_prompts=cuts_prompts))) == count


def test_a_prompt_that_was_not_cut_says_so() -> None:
    whole = Told(10, 3, breakdown={"ctx_chunk_metrics": entries(10), "step_metrics": entries(11, 12)})
    assert len(steps(produced([whole], cuts_prompts=True))) == 3


@pytest.mark.parametrize(("ahead_s", "second_s"), [(0.0, 11.25), (2 * CLOCKS_AGREE_S, 11.0 + LATE_S)])
def test_the_engine_s_own_instants_are_taken_if_they_are_on_the_same_clock(ahead_s: float, second_s: float) -> None:
    breakdown = {"ctx_chunk_metrics": entries(10 + ahead_s), "step_metrics": entries(11.25, 12)}
    (output,) = produced([Told(10, 3, breakdown=breakdown)]).requests
    assert output.token_times_s is not None
    ahead = output.token_times_s[0] - 10  # of the measurement clock
    assert math.isclose(output.token_times_s[1] - ahead, second_s, abs_tol=1e-6)
