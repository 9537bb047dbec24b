"""What a batch and a window tell of their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from fakes import ConstantMeter, StepEngine, VirtualClock, requests
from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest, RequestOutput, steps_of_batch
from llenergymeasure.core.backends.steps import EngineStep, StepLog
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.core.progress import ignore_events
from llenergymeasure.core.window import measure_window


def output(index: int, times_s: Sequence[float] | None, tokens: int, prompt: int = 5) -> RequestOutput:
    return RequestOutput(index, prompt, tuple(range(tokens)), "length", 0.0, times_s)


def test_a_batch_has_a_prefill_and_then_a_step_for_every_token_of_its_longest_text() -> None:
    times_s = [1.0, 1.5, 2.0]
    log = steps_of_batch([output(0, times_s[:2], 2), output(1, times_s, 3, prompt=7), output(2, times_s[:1], 1)])
    assert list(log or ()) == [EngineStep(1.0, 3, 17, 0), EngineStep(1.5, 2, 0, 2), EngineStep(2.0, 1, 0, 1)]


def test_tokens_that_were_drafted_together_are_of_one_step() -> None:
    log = steps_of_batch([output(0, [1.0, 2.0, 2.0, 2.0, 3.0], 5)])
    assert list(log or ()) == [EngineStep(1.0, 1, 5, 0), EngineStep(2.0, 1, 0, 3), EngineStep(3.0, 1, 0, 1)]


def test_without_instants_there_are_no_steps() -> None:
    assert steps_of_batch([output(0, None, 2)]) is None
    assert steps_of_batch([output(0, [1.0], 1), output(1, None, 2)]) is None
    assert steps_of_batch([]) is None


def test_logs_follow_each_other() -> None:
    first, second = StepLog(), StepLog()
    first.add(1.0, 2, 3, 0)
    second.add(2.0, 2, 0, 2)
    first.extend(second)
    assert len(first) == 2
    assert list(first) == [EngineStep(1.0, 2, 3, 0), EngineStep(2.0, 2, 0, 2)]


class TellingEngine(StepEngine):
    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        produced = super().generate(requests)
        return replace(produced, steps=steps_of_batch(produced.requests))


def test_the_window_keeps_the_steps_of_all_its_batches() -> None:
    clock = VirtualClock()
    telling, silent = (make(clock, batch_size=2) for make in (TellingEngine, StepEngine))
    window = measure_window(telling, requests(3, tokens=4), ConstantMeter(clock), clock, ignore_events)
    assert [step.requests for step in window.steps or ()] == [2] * 4 + [1] * 4
    assert {step.ended_s for step in window.steps or ()} == {t for o in window.outputs for t in o.token_times_s or ()}
    assert measure_window(silent, requests(3), ConstantMeter(clock), clock, ignore_events).steps is None


@pytest.mark.parametrize(("joules", "told"), [(5.0, 5.0), (0.0, None), (None, None)])
def test_a_meter_of_the_engines_own_is_open_around_the_window(joules: float | None, told: float | None) -> None:
    order: list[str] = []

    class CountingEngine(StepEngine):
        @contextmanager
        def counting_energy(self) -> Iterator[Callable[[], float | None]]:
            order.append("opened")
            yield lambda: joules
            order.append("closed")

    class NotingMeter(ConstantMeter):
        def start_tracking(self) -> TrackingHandle:
            order.append("start")
            return super().start_tracking()

        def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
            order.append("stop")
            return super().stop_tracking(handle)

    clock = VirtualClock()
    window = measure_window(CountingEngine(clock), requests(2), NotingMeter(clock), clock, ignore_events)
    assert (window.engine_j, order) == (told, ["opened", "start", "stop", "closed"])


def test_a_window_of_which_a_part_is_not_told_has_none() -> None:
    class ForgetfulEngine(TellingEngine):
        def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
            produced = super().generate(requests)
            return replace(produced, steps=None) if self.calls.count("generate") == 2 else produced

    clock = VirtualClock()
    engine = ForgetfulEngine(clock, batch_size=2)
    window = measure_window(engine, requests(6, tokens=4), ConstantMeter(clock), clock, ignore_events)
    assert engine.calls.count("generate") == 3
    assert window.steps is None
