from __future__ import annotations

import pytest

from fakes import ConstantMeter, StepEngine, VirtualClock, requests
from llenergymeasure.core.backends.protocol import split_into_batches
from llenergymeasure.core.progress import ignore_events
from llenergymeasure.core.window import OPENING_LEAD_S, Window, measure_window
from llenergymeasure.exceptions import BackendError


def run_window(engine: StepEngine, meter: ConstantMeter, count: int = 4, **options: object) -> Window:
    return measure_window(engine, requests(count, tokens=10), meter, engine.clock, ignore_events, **options)  # type: ignore[arg-type]


def test_window_holds_the_generation_and_nothing_else() -> None:
    clock = VirtualClock()
    engine, meter = StepEngine(clock, step_s=0.5, batch_size=2), ConstantMeter(clock, power_w=300.0)
    window = run_window(engine, meter)
    assert window.energy.duration_sec == pytest.approx(2 * 10 * 0.5)
    assert window.energy.total_j == pytest.approx(3000.0)
    assert [output.index for output in window.outputs] == [0, 1, 2, 3]


def test_the_engine_is_synchronised_right_before_the_window_opens_and_closes() -> None:
    clock = VirtualClock()
    engine = StepEngine(clock, batch_size=2)
    run_window(engine, ConstantMeter(clock))
    assert engine.calls == ["reset_peak_memory", "synchronize", "generate", "generate", "synchronize"]


def test_whole_passes_are_added_until_the_window_is_long_enough() -> None:
    clock = VirtualClock()
    engine = StepEngine(clock, step_s=0.1, batch_size=4)  # one pass takes 1 s
    window = run_window(engine, ConstantMeter(clock), min_duration_s=2.5)
    assert [output.index for output in window.outputs] == [0, 1, 2, 3] * 3
    assert window.energy.duration_sec == pytest.approx(3.0)


def test_several_processes_open_together_and_close_when_the_last_of_them_is_through() -> None:
    clock = VirtualClock()
    engine, meter = StepEngine(clock), ConstantMeter(clock, power_w=300.0)
    seen: list[tuple[int, float]] = []

    def barrier(lead_s: float) -> None:
        seen.append((meter.open_windows, lead_s))
        clock.sleep(5.0)

    window = run_window(engine, meter, count=1, wait_for_others=barrier)
    assert seen == [(0, OPENING_LEAD_S), (1, 0.0)]
    assert window.energy.duration_sec == pytest.approx(10 * engine.step_s + 5.0)
    assert window.energy.total_j == pytest.approx(300.0 * window.energy.duration_sec)  # the idle tail is counted


@pytest.mark.parametrize("error", [BackendError("out of memory"), KeyboardInterrupt()])
def test_a_window_that_breaks_leaves_no_meter_running(error: BaseException) -> None:
    clock = VirtualClock()
    meter = ConstantMeter(clock)

    def fail(_: object) -> None:
        raise error

    with pytest.raises(type(error)):
        run_window(StepEngine(clock, fail_on=fail), meter)
    assert meter.open_windows == 0


def test_batches_keep_order_and_end_with_what_is_left() -> None:
    batches = split_into_batches(requests(5), 2)
    assert [[r.index for r in batch] for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [len(batch) for batch in split_into_batches(requests(5), None)] == [5]
