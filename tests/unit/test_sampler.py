from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_nvml import FakeGpu, FakeNvml
from fakes import VirtualClock
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.gpu_reader import GpuReader
from llenergymeasure.core.energy.sampler import PowerSampler, next_deadline
from llenergymeasure.core.energy.types import TelemetrySample
from llenergymeasure.core.gpu.driver import GpuDriverError, GpuLostError, NotSupportedError, PowerReading, find_gpus
from llenergymeasure.exceptions import EnergyError

CLOCK = SystemClock()


class ScriptedReader:
    """Calls `read_now` for its n-th sample."""

    def __init__(self, read_now: Callable[[int], TelemetrySample], device: str = "GPU-0") -> None:
        self.device = device
        self._read_now = read_now
        self._count = itertools.count()

    def read(self) -> TelemetrySample:
        return self._read_now(next(self._count))

    def problems(self) -> Sequence[str]:
        return ()


def fresh(_n: int) -> TelemetrySample:
    return TelemetrySample(CLOCK.now(), 100.0)


def sampler_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llem-power-sampler"]


def test_there_are_samples_on_both_sides_of_the_window() -> None:
    sampler = PowerSampler([ScriptedReader(fresh)], interval_s=10.0, clock=CLOCK)
    sampler.start()
    start_s = end_s = CLOCK.now()
    times = [sample.time_s for sample in sampler.stop(end_s).samples("GPU-0")]
    assert times[0] <= start_s
    assert times[-1] >= end_s
    assert not sampler_threads()


def test_stop_waits_for_a_sensor_that_stamps_its_values_late() -> None:
    reader = ScriptedReader(lambda n: TelemetrySample(CLOCK.now() - 0.1, 100.0))
    sampler = PowerSampler([reader], interval_s=0.01, clock=CLOCK)
    sampler.start()
    end_s = CLOCK.now()
    assert [s.time_s for s in sampler.stop(end_s).samples("GPU-0")][-1] >= end_s


def test_a_device_that_falls_silent_does_not_hold_the_others_up() -> None:
    silent = ScriptedReader(lambda n: TelemetrySample(CLOCK.now(), None), device="GPU-1")
    sampler = PowerSampler([ScriptedReader(fresh), silent], interval_s=0.01, clock=CLOCK)
    sampler.start()
    before_s = time.monotonic()
    telemetry = sampler.stop(CLOCK.now())
    assert time.monotonic() - before_s < 1.0
    assert all(sample.power_w is None for sample in telemetry.samples("GPU-1"))


def test_a_thread_that_dies_at_once_is_a_typed_error() -> None:
    def fail(_n: int) -> TelemetrySample:
        raise RuntimeError("driver gone")

    with pytest.raises(EnergyError, match="driver gone"):
        PowerSampler([ScriptedReader(fail)], interval_s=0.01, clock=CLOCK).start()
    assert not sampler_threads()


def test_a_thread_that_dies_later_is_told_in_the_report() -> None:
    died = threading.Event()

    def fail_later(n: int) -> TelemetrySample:
        if n == 3:
            died.set()
            raise RuntimeError("driver gone")
        return fresh(n)

    sampler = PowerSampler([ScriptedReader(fail_later)], interval_s=0.005, clock=CLOCK)
    sampler.start()
    assert died.wait(5)
    telemetry = sampler.stop(CLOCK.now())
    assert "RuntimeError: driver gone" in telemetry.report.problems[0]
    assert len(list(telemetry.samples("GPU-0"))) == 3
    assert not sampler_threads()


def test_an_aborted_sampler_leaves_no_thread() -> None:
    sampler = PowerSampler([ScriptedReader(fresh)], interval_s=10.0, clock=CLOCK)
    sampler.start()
    sampler.abort()
    assert not sampler_threads()


def test_rounds_that_a_slow_device_cost_are_counted() -> None:
    def slow_once(n: int) -> TelemetrySample:
        if n == 1:
            time.sleep(0.08)
        return fresh(n)

    sampler = PowerSampler([ScriptedReader(slow_once)], interval_s=0.01, clock=CLOCK)
    sampler.start()
    CLOCK.sleep(0.15)
    report = sampler.stop(CLOCK.now()).report
    assert report.missed_deadlines >= 6
    assert report.longest_tick_s >= 0.08


@given(st.floats(0, 1e6), st.floats(0.001, 10), st.floats(0, 100), st.integers(1, 20))
def test_deadlines_stay_on_their_grid_however_long_a_round_takes(
    start_s: float, interval_s: float, late_s: float, rounds: int
) -> None:
    deadline_s, taken = start_s, 0
    for _ in range(rounds):
        now_s = deadline_s + late_s
        deadline_s, missed = next_deadline(deadline_s, interval_s, now_s)
        taken += 1 + missed
        assert deadline_s > now_s - 1e-6 * max(1.0, now_s)
    assert deadline_s == pytest.approx(start_s + taken * interval_s)


def gpu_reader(clock: VirtualClock | None = None, **readings: object) -> GpuReader:
    gpu = FakeGpu("GPU-0", readings=readings)
    return GpuReader(*find_gpus(["GPU-0"], FakeNvml(gpu)), clock or VirtualClock())


def stamped(clock: VirtualClock, age_s: float, power_w: float = 200.0) -> PowerReading:
    """A field value that the driver took `age_s` ago."""
    return PowerReading(power_w, (clock.wall() - timedelta(seconds=age_s)).timestamp(), "gpu")


def test_a_field_value_keeps_the_time_the_driver_stamped_it_with() -> None:
    clock = VirtualClock()
    sample = gpu_reader(clock, power_instant=stamped(clock, age_s=0.07)).read()
    assert sample.time_s == pytest.approx(clock.now() - 0.07, abs=1e-5)
    assert (sample.power_w, sample.power_source) == (200.0, "power_instant")


def test_a_stamp_that_is_not_wall_time_is_not_believed() -> None:
    clock = VirtualClock()
    sample = gpu_reader(clock, power_instant=PowerReading(200.0, 12.0, "gpu")).read()
    assert (sample.time_s, sample.power_w) == (clock.now(), 200.0)


def test_a_sensor_that_stopped_updating_gives_no_more_power() -> None:
    clock = VirtualClock()
    reader = gpu_reader(clock, power_instant=stamped(clock, 0.0), power_usage_w=NotSupportedError("none"))
    assert reader.read().power_w == 200.0
    clock.sleep(11.0)
    assert reader.read().power_w is None
    assert "same value" in reader.problems()[0]


def test_module_scope_is_recorded() -> None:
    reader = gpu_reader(power_instant=PowerReading(700.0, None, "module"))
    assert reader.read().power_source == "power_instant_module"


def test_without_the_field_the_older_reading_is_used_and_the_field_asked_for_once() -> None:
    gpu = FakeGpu("GPU-0", readings={"power_instant": NotSupportedError("old board"), "power_usage_w": 80.0})
    reader = GpuReader(*find_gpus(["GPU-0"], FakeNvml(gpu)), VirtualClock())
    assert [reader.read().power_source for _ in range(3)] == ["power_usage"] * 3
    assert gpu.calls.count("power_instant") == 1
    assert not reader.problems()


@pytest.mark.parametrize("watts", [4_294_967.295, 0.0, 901.0])
def test_a_power_that_the_board_cannot_draw_is_no_reading(watts: float) -> None:
    reader = gpu_reader(power_instant=PowerReading(watts, None, "gpu"), power_usage_w=watts)  # limit 300 W
    assert reader.read().power_w is None
    assert "not a power" in reader.problems()[0]


def test_a_lost_gpu_gives_no_figure_and_one_line_for_all_readings() -> None:
    lost = GpuLostError("GPU is lost")
    names = ["power_instant", "power_usage_w", "temperature_c", "sm_clock_mhz", "memory_clock_mhz"]
    names += ["sm_utilisation_pct", "memory_used_mb", "throttle_reasons", "power_limit_w"]
    reader = gpu_reader(**dict.fromkeys(names, lost))
    for _ in range(5):
        sample = reader.read()
    assert (sample.power_w, sample.temperature_c, sample.throttle_reasons) == (None, None, None)
    (problem,) = reader.problems()
    assert "temperature (5 times)" in problem
    assert problem.endswith("first because GPU is lost")


def test_time_never_runs_backwards() -> None:
    clock = VirtualClock()
    ages = iter([0.01, 0.05, 0.03])
    reader = gpu_reader(clock, power_instant=lambda: stamped(clock, next(ages)))
    times = [reader.read().time_s for _ in range(3)]
    assert times == sorted(times)


def test_other_failures_are_tried_again() -> None:
    answers = iter([GpuDriverError("timeout"), 55.0])
    reader = gpu_reader(temperature_c=lambda: next(answers))
    assert [reader.read().temperature_c for _ in range(2)] == [None, 55.0]
