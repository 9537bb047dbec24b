from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import PREPARES_NOTHING, ConstantMeter, StepEngine, VirtualClock, requests
from llenergymeasure.config.models import WarmupConfig
from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest, Specialisation
from llenergymeasure.core.backends.rehearsal import MAX_MEETINGS, SHORT_OUTPUT_TOKENS, rehearsed_batches
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.core.progress import Waiting, ignore_events
from llenergymeasure.core.warmup import Warmup, _warnings, coefficient_of_variation, warm_up, warmup_until_converged
from llenergymeasure.core.window import measure_window
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode


def run_warmup(config: WarmupConfig, *, count: int = 3, batch_size: int = 2) -> tuple[Warmup, StepEngine, VirtualClock]:
    clock = VirtualClock()
    engine = StepEngine(clock, batch_size=batch_size)
    asked = requests(count, tokens=100)
    warmup = warm_up(engine, asked, config, PREPARES_NOTHING, ConstantMeter(clock, 80.0), clock, ignore_events)
    return warmup, engine, clock


def test_fixed_mode_runs_exactly_n() -> None:
    result = warmup_until_converged(lambda: 10.0, WarmupConfig(n_warmup=7))
    assert result.iterations_completed == 7
    assert result.converged
    assert result.latencies_ms == [10.0] * 7
    assert result.final_cv == pytest.approx(0.0)


@pytest.mark.parametrize(("latencies", "cv"), [([90.0, 10.0, 30.0], 0.961), ([10.0, 10.1, 10.0], 0.006), ([9.0], None)])
def test_fixed_mode_has_converged_whatever_its_latencies_were_which_final_cv_tells(
    latencies: list[float], cv: float | None
) -> None:
    source = iter(latencies)
    config = WarmupConfig(n_warmup=len(latencies))
    result = warmup_until_converged(lambda: next(source), config)
    assert result.converged
    assert result.final_cv == (cv and pytest.approx(cv, abs=0.001))
    assert tuple(_warnings(result, config, None)) == ()


def test_switched_off_runs_nothing_and_is_converged() -> None:
    result = warmup_until_converged(lambda: 1 / 0, WarmupConfig(enabled=False))
    assert result.iterations_completed == 0
    assert result.converged
    assert result.final_cv is None


def test_convergence_stops_as_soon_as_the_last_window_agrees() -> None:
    latencies = iter([100.0, 50.0, 30.0, 20.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    config = WarmupConfig(n_warmup=1, convergence_detection=True, window_size=3, min_prompts=1, cv_threshold=0.05)
    result = warmup_until_converged(lambda: next(latencies), config)
    assert result.converged
    assert result.iterations_completed == 7
    assert result.final_cv == pytest.approx(0.0)


def test_convergence_gives_up_at_max_prompts_and_says_so() -> None:
    latencies = iter([10.0, 20.0] * 100)
    config = WarmupConfig(n_warmup=1, convergence_detection=True, max_prompts=12)
    result = warmup_until_converged(lambda: next(latencies), config)
    assert not result.converged
    assert result.iterations_completed == 12
    assert result.final_cv is not None
    assert result.final_cv > config.cv_threshold


@given(latencies=st.lists(st.floats(1.0, 1000.0), min_size=40, max_size=40), n=st.integers(1, 15))
def test_convergence_never_exceeds_its_bounds_whatever_the_latencies(latencies: list[float], n: int) -> None:
    config = WarmupConfig(n_warmup=n, convergence_detection=True, max_prompts=20, min_prompts=5)
    source = iter(latencies)
    result = warmup_until_converged(lambda: next(source), config)
    assert max(n, 5) <= result.iterations_completed <= 20
    assert result.converged == (result.final_cv is not None and result.final_cv <= config.cv_threshold)


def test_coefficient_of_variation_needs_two_values() -> None:
    assert coefficient_of_variation([1.0]) is None
    assert coefficient_of_variation([1.0, 3.0]) == pytest.approx(2**0.5 / 2.0)


def test_iterations_use_the_batch_of_the_measurement_with_short_outputs_and_start_over_at_the_end() -> None:
    warmup, engine, _ = run_warmup(WarmupConfig(n_warmup=3, thermal_floor_seconds=0.0))
    assert [[r.index for r in batch] for batch in engine.batches] == [[0, 1], [2, 0], [1, 2]]
    assert {r.max_new_tokens for batch in engine.batches for r in batch} == {SHORT_OUTPUT_TOKENS}
    assert warmup.prompts_run == 6


def test_the_thermal_floor_is_waited_measured_and_followed_by_one_more_batch() -> None:
    warmup, engine, clock = run_warmup(WarmupConfig(n_warmup=3, thermal_floor_seconds=30.0))
    assert warmup.result is not None
    assert warmup.result.thermal_floor_wait_s == pytest.approx(30.0)
    assert warmup.result.iterations_completed == 3
    assert warmup.idle_resident_power_w == pytest.approx(80.0)
    assert len(engine.batches) == 4
    assert clock.now() - VirtualClock().now() == pytest.approx(30.0 + 4 * SHORT_OUTPUT_TOKENS * engine.step_s)


@pytest.mark.parametrize(("floor_s", "settled_s"), [(60.0, 10.0), (30.0, 10.0)])
def test_resident_idle_power_is_that_of_the_settled_end_of_the_floor(floor_s: float, settled_s: float) -> None:
    """200 W right after warm-up, 80 W from the settled end on."""
    clock, seen = VirtualClock(), []

    class CoolingMeter(ConstantMeter):
        def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
            idle = super().stop_tracking(handle)
            hot_s = max(0.0, floor_s - settled_s - (handle.start_s - floor_began_s))
            return replace(idle, total_j=80.0 * idle.duration_sec + 120.0 * hot_s)

    config = WarmupConfig(n_warmup=3, thermal_floor_seconds=floor_s)
    engine = StepEngine(clock, batch_size=2)
    floor_began_s = clock.now() + 3 * SHORT_OUTPUT_TOKENS * engine.step_s
    warmup = warm_up(engine, requests(3, tokens=100), config, PREPARES_NOTHING, CoolingMeter(clock), clock, seen.append)
    assert warmup.idle_resident_power_w == pytest.approx(80.0)
    left_s = [event.remaining_s for event in seen if isinstance(event, Waiting)]
    assert left_s[0] == pytest.approx(floor_s)
    assert left_s == sorted(left_s, reverse=True)


def test_without_a_thermal_floor_the_result_carries_a_warning_and_no_resident_power() -> None:
    warmup, engine, _ = run_warmup(WarmupConfig(n_warmup=3, thermal_floor_seconds=0.0))
    assert [w.code for w in warmup.warnings] == [WarningCode.THERMAL_FLOOR_DISABLED]
    assert warmup.idle_resident_power_w is None
    assert len(engine.batches) == 3


def test_a_meter_that_fails_during_the_floor_says_why_there_is_no_resident_power() -> None:
    clock = VirtualClock()
    meter = FailingMeter(clock)
    config = WarmupConfig(thermal_floor_seconds=30.0)
    warmup = warm_up(StepEngine(clock), requests(2), config, PREPARES_NOTHING, meter, clock, ignore_events)
    assert warmup.idle_resident_power_w is None
    (warning,) = warmup.warnings
    assert warning.code is WarningCode.TELEMETRY_UNAVAILABLE
    assert "the counter was reset" in warning.message


class FailingMeter(ConstantMeter):
    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        note = MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, "the counter was reset")
        return replace(super().stop_tracking(handle), total_j=None, notes=(note,))


def test_energy_that_nobody_wants_is_not_missed() -> None:
    clock = VirtualClock()
    config = WarmupConfig(thermal_floor_seconds=30.0)
    meter = NoEnergyBackend(clock)
    warmup = warm_up(StepEngine(clock), requests(2), config, PREPARES_NOTHING, meter, clock, ignore_events)
    assert warmup.result is not None
    assert warmup.result.thermal_floor_wait_s == pytest.approx(30.0)
    assert (warmup.idle_resident_power_w, warmup.warnings) == (None, ())


def test_warm_up_that_is_off_leaves_an_engine_that_prepares_nothing_alone() -> None:
    warmup, engine, _ = run_warmup(WarmupConfig(enabled=False))
    assert warmup.result is None
    assert engine.calls == []


# --- the rehearsal -----------------------------------------------------------------------------------------------


@dataclass
class CompilingEngine(StepEngine):
    """Compiles for each number of rows, prompt width and output length that it has not met; records for as many runs.

    Args:
        records: Further times that a shape is worked on.
    """

    records: int = 0

    def __post_init__(self) -> None:
        self.met: dict[tuple[int, int, int], int] = {}

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        width, longest = max(len(r.token_ids) for r in requests), max(r.max_new_tokens for r in requests)
        shape = (len(requests), width, longest)
        self.met[shape] = self.met.get(shape, 0) + 1
        compilations = int(self.met[shape] <= 1 + self.records)
        return replace(super().generate(requests), compilations=compilations)


def prompts_of(*lengths: int, tokens: int = 40) -> list[GenerationRequest]:
    return [GenerationRequest(i, tuple(range(length)), tokens) for i, length in enumerate(lengths)]


def compiled_after(asked: list[GenerationRequest], specialisation: Specialisation, **engine_fields: object) -> int:
    """What an engine still compiles in the window, after warm-up was off."""
    clock = VirtualClock()
    engine = CompilingEngine(clock, batch_size=3, **engine_fields)  # type: ignore[arg-type]
    meter, off = ConstantMeter(clock), WarmupConfig(enabled=False)
    warm_up(engine, asked, off, specialisation, meter, clock, ignore_events)
    return measure_window(engine, asked, meter, clock, ignore_events).compilations


def test_whatever_an_engine_specialises_on_nothing_is_compiled_in_the_window() -> None:
    ragged = prompts_of(4, 9, 2, 5, 5, 5, 7)
    on_everything = Specialisation(every_prompt_length=True, full_output_length=True)
    assert compiled_after(ragged, Specialisation(meetings=0)) == 3
    assert compiled_after(ragged, on_everything) == 0
    assert compiled_after(ragged, on_everything, records=2) == 0
    assert compiled_after(ragged, on_everything, records=MAX_MEETINGS) > 0


def rehearsed_shapes(asked: list[GenerationRequest], specialisation: Specialisation) -> list[tuple[int, int, int]]:
    clock = VirtualClock()
    engine = CompilingEngine(clock, batch_size=3)
    off = WarmupConfig(enabled=False)
    warm_up(engine, asked, off, specialisation, ConstantMeter(clock), clock, ignore_events)
    return list(engine.met)


def test_every_engine_meets_the_ragged_batch_and_the_longest_prompt_with_short_texts() -> None:
    asked = prompts_of(4, 4, 4, 4, 9, 4, 6)
    assert rehearsed_shapes(asked, Specialisation()) == [(3, 9, SHORT_OUTPUT_TOKENS), (1, 6, SHORT_OUTPUT_TOKENS)]


def test_an_engine_that_batches_by_itself_meets_as_many_at_once_as_it_will_run() -> None:
    asked = prompts_of(4, 4, 9, 4, 6)
    assert [len(batch) for batch in rehearsed_batches(asked, None, Specialisation(rows=3))] == [3, 2]
    clock = VirtualClock()
    engine = CompilingEngine(clock, batch_size=None)
    config = WarmupConfig(n_warmup=2, thermal_floor_seconds=0)
    warm_up(engine, asked, config, Specialisation(rows=3, meetings=0), ConstantMeter(clock), clock, ignore_events)
    assert {rows for rows, _, _ in engine.met} == {3}


def test_texts_in_full_are_met_where_the_engine_specialises_on_their_length() -> None:
    asked = prompts_of(4, 4, 4, 4, 9, 4, 6)
    assert rehearsed_shapes(asked, Specialisation(full_output_length=True)) == [(3, 9, 40), (1, 6, 40)]


def test_graphs_are_recorded_although_no_compilation_is_seen_at_first() -> None:
    clock = VirtualClock()
    engine = StepEngine(clock, batch_size=2)
    off = WarmupConfig(enabled=False)
    warm_up(engine, requests(2), off, Specialisation(meetings=3), ConstantMeter(clock), clock, ignore_events)
    assert len(engine.batches) == 3


def test_rehearsed_prompts_are_excluded_and_come_before_the_iterations() -> None:
    clock = VirtualClock()
    engine = CompilingEngine(clock, batch_size=2)
    config = WarmupConfig(n_warmup=2, thermal_floor_seconds=0.0)
    warmup = warm_up(engine, requests(3), config, Specialisation(), ConstantMeter(clock), clock, ignore_events)
    assert warmup.result is not None
    assert warmup.result.iterations_completed == 2
    assert warmup.prompts_run == 2 * (2 + 1) + 2 * 2  # both shapes compile once, so they are met twice
