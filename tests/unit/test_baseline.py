from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from energy_fakes import listed
from fakes import ConstantMeter, VirtualClock
from llenergymeasure.config.models import BaselineConfig
from llenergymeasure.core.baseline import CACHE_TTL_S, BaselineCache, baseline_from, measure_baseline
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.core.host.load import CpuTimes, read_cpu_times
from llenergymeasure.core.progress import Event, StepFinished, Waiting, ignore_events
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.warnings import WarningCode


def idle(
    total_j: float | None, seconds: float = 10.0, samples: list[TelemetrySample] | None = None
) -> EnergyMeasurement:
    return EnergyMeasurement(
        start_s=0.0,
        end_s=seconds,
        total_j=total_j,
        method="hardware_counter",
        scope="gpu",
        per_gpu_j={"GPU-0": total_j},
        telemetry=None if samples is None else listed({"GPU-0": samples}),
    )


def test_idle_power_is_energy_over_time() -> None:
    clock = VirtualClock()
    meter = ConstantMeter(clock, power_w=61.2)
    config = BaselineConfig(duration_seconds=30.0)
    baseline = measure_baseline(config, meter, ["GPU-0"], BaselineCache(), clock, ignore_events)
    assert baseline.power_w == pytest.approx(61.2)
    assert baseline.method == "fresh"
    assert baseline.duration_s == pytest.approx(30.0)
    assert meter.open_windows == 0


@pytest.mark.parametrize(("device", "warned"), [("GPU-0", True), ("cpu", False)])
def test_idle_power_with_a_context_of_this_process_is_told_and_serves_no_other_run(device: str, warned: bool) -> None:
    clock, cache = VirtualClock(), BaselineCache()
    arguments = (BaselineConfig(duration_seconds=5.0), ConstantMeter(clock, 122.0), [device], cache, clock)
    first = measure_baseline(*arguments, ignore_events, lambda: None, lambda: True)
    assert first.power_w == pytest.approx(122.0)
    assert any("CUDA context" in warning.message for warning in first.warnings) is warned
    assert bool(cache.entries()) is not warned


def test_idle_power_taken_bare_serves_a_run_that_has_a_context() -> None:
    clock, cache = VirtualClock(), BaselineCache()
    arguments = (BaselineConfig(duration_seconds=5.0), ConstantMeter(clock, 84.0), ["GPU-0"], cache, clock)
    measure_baseline(*arguments, ignore_events, lambda: None, lambda: False)
    second = measure_baseline(*arguments, ignore_events, lambda: None, lambda: True)
    assert (second.method, second.warnings) == ("cached", ())


def account(*columns: int, own_s: float = 0.0, root: Path) -> CpuTimes:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text(f"cpu  {' '.join(map(str, columns))}\ncpu0 1 2 3\n")
    times = read_cpu_times(root)
    assert times is not None
    return replace(times, own_s=own_s)


@pytest.mark.parametrize(
    ("device", "busy", "own_s", "warned"),
    [("cpu", 1500, 0.0, True), ("cpu", 300, 0.0, False), ("cpu", 1500, 14.0, False), ("GPU-0", 1500, 0.0, False)],
    ids=["busy", "at rest", "busy by itself", "a GPU"],
)
def test_a_processor_that_others_use_is_not_idle(
    device: str, busy: int, own_s: float, warned: bool, tmp_path: Path
) -> None:
    """30 s on two hardware threads, of which others used 15 s or 3 s."""
    clock, cache = VirtualClock(), BaselineCache()
    accounts = [
        account(100, 0, 50, 1000, 5, 0, 0, 0, 7, 7, root=tmp_path),
        account(100 + busy - 200, 0, 150, 7000 - busy, 5, 0, 50, 50, 7, 7, own_s=own_s, root=tmp_path),
    ]
    baseline = measure_baseline(
        BaselineConfig(duration_seconds=30.0),
        ConstantMeter(clock, devices=(device,)),
        [device],
        cache,
        clock,
        ignore_events,
        cpu_times=partial(next, iter(accounts)),
    )
    assert [note.code for note in baseline.warnings] == [WarningCode.BASELINE_NOT_IDLE] * warned
    if warned:
        assert "other programs used 25 % of the processor" in baseline.warnings[0].message
    assert (cache.entries() == ()) is warned


def test_a_machine_without_an_account_of_its_processor_is_not_judged(tmp_path: Path) -> None:
    assert read_cpu_times(tmp_path) is None
    (tmp_path / "proc").mkdir()
    for odd in ("", "intr 5", "cpu 1 2", "cpu a b c d e f g h"):
        (tmp_path / "proc/stat").write_text(odd)
        assert read_cpu_times(tmp_path) is None
    short = account(1, 0, 0, 10, 0, 0, 0, 0, root=tmp_path)
    assert replace(short, total_s=short.total_s + 0.1).busy_pct_since(short) is None


def test_this_machine_keeps_an_account() -> None:
    times = read_cpu_times()
    assert times is not None
    assert 0.0 < times.idle_s < times.total_s


def test_a_second_run_on_the_same_devices_takes_the_cached_baseline_and_says_its_age() -> None:
    clock = VirtualClock()
    meter, cache, config = ConstantMeter(clock), BaselineCache(), BaselineConfig(duration_seconds=10.0)
    measure_baseline(config, meter, ["GPU-0"], cache, clock, ignore_events)
    clock.sleep(120.0)
    before_s = clock.now()
    again = measure_baseline(config, meter, ["GPU-0"], cache, clock, ignore_events)
    assert again.method == "cached"
    assert again.age_s == pytest.approx(130.0)
    assert clock.now() == before_s


@pytest.mark.parametrize(
    ("devices", "meter_name", "seconds", "age_s"),
    [
        (["GPU-1"], "constant", 10.0, 0.0),
        (["GPU-0", "GPU-1"], "constant", 10.0, 0.0),
        (["GPU-0"], "zeus", 10.0, 0.0),
        (["GPU-0"], "constant", 20.0, 0.0),
        (["GPU-0"], "constant", 10.0, CACHE_TTL_S + 1),
    ],
    ids=["other device", "other set", "other meter", "measured too short", "too old"],
)
def test_a_cached_baseline_serves_only_its_own_devices_and_meter_and_hour(
    devices: list[str], meter_name: str, seconds: float, age_s: float
) -> None:
    clock = VirtualClock()
    cache = BaselineCache()
    measure_baseline(
        BaselineConfig(duration_seconds=10.0), ConstantMeter(clock), ["GPU-0"], cache, clock, ignore_events
    )
    assert cache.get(["GPU-0"], "constant", 10.0, clock) is not None
    clock.sleep(age_s)
    assert cache.get(devices, meter_name, seconds, clock) is None


class WokenClock(VirtualClock):
    """One of a machine that slept, which only its dates know; or whose date was set back."""

    slept_s = 0.0

    def wall(self) -> datetime:
        return super().wall() + timedelta(seconds=self.slept_s)


@pytest.mark.parametrize(("slept_s", "age_s"), [(600.0, 610.0), (CACHE_TTL_S, None), (-7200.0, 10.0)])
def test_a_baseline_ages_while_the_machine_sleeps(slept_s: float, age_s: float | None) -> None:
    clock, cache = WokenClock(), BaselineCache()
    config = BaselineConfig(duration_seconds=10.0)
    measure_baseline(config, ConstantMeter(clock), ["GPU-0"], cache, clock, ignore_events)
    clock.slept_s = slept_s
    found = cache.get(["GPU-0"], "constant", 10.0, clock)
    assert (found and found.age_s) == (age_s and pytest.approx(age_s))


def test_a_cache_can_be_handed_to_another_process() -> None:
    clock = VirtualClock()
    cache = BaselineCache()
    measure_baseline(
        BaselineConfig(duration_seconds=10.0), ConstantMeter(clock), ["GPU-0"], cache, clock, ignore_events
    )
    inherited = BaselineCache(cache.entries())
    assert inherited.get(["GPU-0"], "constant", 10.0, clock) is not None


def test_a_meter_without_a_figure_makes_the_baseline_unavailable_not_zero() -> None:
    baseline = baseline_from(idle(None), VirtualClock().wall())
    assert baseline.power_w is None
    assert baseline.method == "unavailable"
    assert [w.code for w in baseline.warnings] == [WarningCode.BASELINE_UNAVAILABLE]


def test_a_busy_gpu_is_noticed_by_its_utilisation() -> None:
    samples = [TelemetrySample(time_s=float(i), power_w=200.0, sm_utilisation_pct=80.0) for i in range(10)]
    assert [w.code for w in baseline_from(idle(2000.0, samples=samples), VirtualClock().wall()).warnings] == [
        WarningCode.BASELINE_NOT_IDLE
    ]


def test_a_busy_gpu_is_noticed_by_its_restless_power_alone() -> None:
    samples = [TelemetrySample(time_s=float(i), power_w=60.0 + 100.0 * (i % 2)) for i in range(10)]
    (warning,) = baseline_from(idle(1100.0, samples=samples), VirtualClock().wall()).warnings
    assert warning.code is WarningCode.BASELINE_NOT_IDLE
    assert "(power varied by 45 %)" in warning.message  # and nothing of a utilisation that nobody told


def test_a_quiet_gpu_raises_no_doubt_and_is_cached_while_a_busy_one_is_not() -> None:
    quiet = [TelemetrySample(time_s=float(i), power_w=60.0 + 0.1 * (i % 2), sm_utilisation_pct=0.0) for i in range(10)]
    assert baseline_from(idle(600.0, samples=quiet), VirtualClock().wall()).warnings == ()
    busy = [TelemetrySample(time_s=float(i), power_w=200.0, sm_utilisation_pct=80.0) for i in range(10)]
    cache = BaselineCache()
    cache.put(["GPU-0"], "constant", baseline_from(idle(2000.0, samples=busy), VirtualClock().wall()))
    assert cache.entries() == ()


@pytest.mark.parametrize(("fall_w", "warned"), [(12.0, True), (3.0, False)])
def test_a_board_that_still_cools_down_is_not_at_rest(fall_w: float, warned: bool) -> None:
    """From 86 or 77 W down to 74 W; between the means of the first and the last third lie two thirds of the fall."""
    samples = [TelemetrySample(time_s=i / 10, power_w=74.0 + fall_w * (1 - i / 99)) for i in range(100)]
    baseline = baseline_from(idle(74.0 * 10 + fall_w * 5, samples=samples), VirtualClock().wall())
    assert [w.code for w in baseline.warnings] == [WarningCode.BASELINE_NOT_IDLE] * warned
    assert baseline.half_width_w == pytest.approx(fall_w * 2 / 3, rel=0.02)


def test_noise_of_an_idle_board_is_no_drift() -> None:
    draw = random.Random(3)
    samples = [TelemetrySample(time_s=i / 10, power_w=20.0 + draw.gauss(0.0, 1.0)) for i in range(300)]
    assert baseline_from(idle(200.0, samples=samples), VirtualClock().wall()).warnings == ()


def test_an_engine_that_uses_fewer_devices_than_planned_keeps_their_share() -> None:
    measured = EnergyMeasurement(
        start_s=0.0, end_s=10.0, total_j=1000.0, method="hardware_counter", scope="gpu",
        per_gpu_j={"GPU-0": 600.0, "GPU-1": 400.0},
    )  # fmt: skip
    baseline = baseline_from(measured, VirtualClock().wall())
    assert baseline.restricted_to(["GPU-1"]).power_w == pytest.approx(40.0)
    assert baseline.restricted_to(["GPU-2"]).method == "unavailable"


def test_idle_power_of_fewer_devices_is_known_as_well_as_theirs_and_no_better() -> None:
    def within(half_width_j: float) -> tuple[BudgetComponent, ...]:
        return (BudgetComponent(name="counter", kind="counter_resolution", half_width_j=half_width_j),)

    measured = EnergyMeasurement(
        start_s=0.0, end_s=10.0, total_j=1000.0, method="hardware_counter", scope="gpu",
        per_gpu_j={"GPU-0": 800.0, "GPU-1": 100.0, "GPU-2": 100.0}, components=within(5.0),
        per_gpu_components={"GPU-0": within(3.0), "GPU-1": within(4.0), "GPU-2": within(0.0)},
    )  # fmt: skip
    baseline = baseline_from(measured, VirtualClock().wall())
    assert baseline.half_width_w == pytest.approx(0.5)
    assert baseline.restricted_to(["GPU-1"]).half_width_w == pytest.approx(0.4)  # not a tenth of the whole
    told_together = replace(baseline, per_device_half_width_w={})
    assert told_together.restricted_to(["GPU-1", "GPU-2"]).half_width_w == pytest.approx(0.5)  # once, not each


def test_switched_off_measures_and_waits_for_nothing() -> None:
    clock = VirtualClock()
    baseline = measure_baseline(
        BaselineConfig(enabled=False), ConstantMeter(clock), ["GPU-0"], BaselineCache(), clock, ignore_events
    )
    assert baseline.power_w is None
    assert baseline.method is None
    assert clock.now() == VirtualClock().now()


def test_the_wait_is_counted_down_and_the_outcome_told() -> None:
    clock, events = VirtualClock(), list[Event]()
    measure_baseline(
        BaselineConfig(duration_seconds=5.0), ConstantMeter(clock), ["GPU-0"], BaselineCache(), clock, events.append
    )
    assert [round(e.remaining_s) for e in events if isinstance(e, Waiting)] == [5, 4, 3, 2, 1]
    assert events[-1] == StepFinished("baseline", "100.0 W idle (5 s)")


class EstimatingMeter(ConstantMeter):
    """Tells what a model says."""

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        return replace(super().stop_tracking(handle), method="model_estimate")


def test_idle_power_that_a_model_tells_is_called_an_estimate_from_a_cache_too() -> None:
    clock, cache, events = VirtualClock(), BaselineCache(), list[Event]()
    for _ in range(2):
        measure_baseline(
            BaselineConfig(duration_seconds=5.0), EstimatingMeter(clock), ["GPU-0"], cache, clock, events.append
        )
    told = [event.detail for event in events if isinstance(event, StepFinished)]
    assert told == ["100.0 W idle, estimated (5 s)", "100.0 W idle, estimated (cached, 5 s old)"]
