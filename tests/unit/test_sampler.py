from __future__ import annotations

import itertools
import math
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
from llenergymeasure.core.energy.sampler import GpuReader, PowerSampler, next_deadline
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.gpu.driver import GpuDriverError, GpuLostError, NotSupportedError, PowerReading, find_gpus
from llenergymeasure.exceptions import EnergyError

CLOCK = SystemClock()


class ScriptedReader:
    """Calls `read_now` for its n-th sample."""

    longest_interval_s = math.inf

    def __init__(self, read_now: Callable[[int], TelemetrySample], device: str = "GPU-0") -> None:
        self.device = device
        self._read_now = read_now
        self._count = itertools.count()

    def read(self) -> Sequence[TelemetrySample]:
        return (self._read_now(next(self._count)),)

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
    times = sampler.stop(end_s).column("GPU-0", "time_s")
    assert times[0] <= start_s
    assert times[-1] >= end_s
    assert not sampler_threads()


def test_stop_waits_for_a_sensor_that_stamps_its_values_late() -> None:
    reader = ScriptedReader(lambda n: TelemetrySample(CLOCK.now() - 0.1, 100.0))
    sampler = PowerSampler([reader], interval_s=0.01, clock=CLOCK)
    sampler.start()
    end_s = CLOCK.now()
    assert sampler.stop(end_s).column("GPU-0", "time_s")[-1] >= end_s


def test_a_device_that_falls_silent_does_not_hold_the_others_up() -> None:
    silent = ScriptedReader(lambda n: TelemetrySample(CLOCK.now(), None), device="GPU-1")
    sampler = PowerSampler([ScriptedReader(fresh), silent], interval_s=0.01, clock=CLOCK)
    sampler.start()
    telemetry = sampler.stop(CLOCK.now())
    assert not telemetry.report.problems  # such as a thread that did not end
    assert all(math.isnan(power_w) for power_w in telemetry.column("GPU-1", "power_w"))


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
    assert died.wait(60)
    telemetry = sampler.stop(CLOCK.now())
    assert "RuntimeError: driver gone" in telemetry.report.problems[0]
    assert len(telemetry.column("GPU-0", "time_s")) == 3
    assert not sampler_threads()


def test_an_aborted_sampler_leaves_no_thread() -> None:
    sampler = PowerSampler([ScriptedReader(fresh)], interval_s=10.0, clock=CLOCK)
    sampler.start()
    sampler.abort()
    assert not sampler_threads()


def test_rounds_that_a_slow_device_cost_are_counted() -> None:
    over = threading.Event()

    def slow_once(n: int) -> TelemetrySample:
        if n == 1:
            time.sleep(0.08)
        if n == 2:
            over.set()
        return fresh(n)

    sampler = PowerSampler([ScriptedReader(slow_once)], interval_s=0.01, clock=CLOCK)
    sampler.start()
    assert over.wait(60)
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
    sample = gpu_reader(clock, power_instant=stamped(clock, age_s=0.07)).read()[-1]
    assert sample.time_s == pytest.approx(clock.now() - 0.07, abs=1e-5)
    assert (sample.power_w, sample.power_source) == (200.0, "power_instant")


def test_a_stamp_that_is_not_wall_time_is_not_believed() -> None:
    clock = VirtualClock()
    sample = gpu_reader(clock, power_instant=PowerReading(200.0, 12.0, "gpu")).read()[-1]
    assert (sample.time_s, sample.power_w) == (clock.now(), 200.0)


def test_a_sensor_that_stopped_updating_gives_no_more_power() -> None:
    clock = VirtualClock()
    reader = gpu_reader(clock, power_instant=stamped(clock, 0.0), power_usage_w=NotSupportedError("none"))
    assert reader.read()[-1].power_w == 200.0
    clock.sleep(11.0)
    assert reader.read()[-1].power_w is None
    assert "same value" in reader.problems()[0]


def test_module_scope_is_recorded() -> None:
    reader = gpu_reader(power_instant=PowerReading(700.0, None, "module"))
    assert reader.read()[-1].power_source == "power_instant_module"


def test_without_the_field_the_older_reading_is_used_and_the_field_asked_for_once() -> None:
    gpu = FakeGpu("GPU-0", readings={"power_instant": NotSupportedError("old board"), "power_usage_w": 80.0})
    reader = GpuReader(*find_gpus(["GPU-0"], FakeNvml(gpu)), VirtualClock())
    assert [reader.read()[-1].power_source for _ in range(3)] == ["power_usage"] * 3
    assert gpu.calls.count("power_instant") == 1
    assert not reader.problems()


@pytest.mark.parametrize("watts", [4_294_967.295, 0.0, 901.0])
def test_a_power_that_the_board_cannot_draw_is_no_reading(watts: float) -> None:
    reader = gpu_reader(power_instant=PowerReading(watts, None, "gpu"), power_usage_w=watts)  # limit 300 W
    assert reader.read()[-1].power_w is None
    assert "not a power" in reader.problems()[0]


def test_what_a_board_draws_when_its_power_cap_is_lifted_is_a_reading() -> None:
    lowered = {"power_limit_w": 100.0, "default_power_limit_w": 300.0}
    assert gpu_reader(power_instant=PowerReading(301.0, None, "gpu"), **lowered).read()[-1].power_w == 301.0


def test_a_lost_gpu_gives_no_figure_and_one_line_for_all_readings() -> None:
    lost = GpuLostError("GPU is lost")
    names = ["power_instant", "power_usage_w", "temperature_c", "sm_clock_mhz", "memory_clock_mhz"]
    names += ["sm_utilisation_pct", "memory_used_mb", "throttle_reasons", "power_limit_w"]
    reader = gpu_reader(**dict.fromkeys(names, lost))
    for _ in range(5):
        sample = reader.read()[-1]
    assert (sample.power_w, sample.temperature_c, sample.throttle_reasons) == (None, None, None)
    (problem,) = reader.problems()
    assert "temperature (5 times)" in problem
    assert problem.endswith("first because GPU is lost")


def buffered_reader(clock: VirtualClock, taken: list[tuple[float, float]], **readings: object) -> GpuReader:
    """A reader of a driver that samples by itself: seconds on the clock and watts, which a test may add to."""

    def microseconds() -> tuple[tuple[int, float], ...]:
        wall_s = clock.wall().timestamp() - clock.now()
        return tuple((round(1e6 * (wall_s + time_s)), watts) for time_s, watts in taken)

    gpu = FakeGpu("GPU-0", readings={"buffered_power": microseconds, **readings})
    return GpuReader(*find_gpus(["GPU-0"], FakeNvml(gpu)), clock, buffered=True)


def test_every_sample_that_the_driver_takes_is_seen_once_with_the_time_at_which_it_was_taken() -> None:
    clock = VirtualClock()
    taken = [(clock.now() - 0.02 * back, 100.0 + back) for back in (4, 3, 2, 1)]
    reader = buffered_reader(clock, taken, temperature_c=55.0)
    first = reader.read()
    assert [sample.time_s for sample in first] == pytest.approx([time_s for time_s, _ in taken], abs=2e-6)
    assert [(s.power_w, s.power_source, s.temperature_c) for s in first[:2]] == [
        (104.0, "driver_buffer", 55.0),
        (103.0, "driver_buffer", 55.0),
    ]
    assert reader.read() == ()
    clock.sleep(0.02)
    taken.append((clock.now(), 300.0))
    assert [sample.power_w for sample in reader.read()] == [300.0]
    assert not reader.problems()


def test_a_driver_that_stops_sampling_is_asked_for_its_power() -> None:
    clock = VirtualClock()
    reader = buffered_reader(clock, [(clock.now(), 100.0)], power_instant=PowerReading(200.0, None, "gpu"))
    assert [sample.power_source for sample in reader.read()] == ["driver_buffer"]
    clock.sleep(0.2)
    assert reader.read() == ()
    clock.sleep(0.1)
    assert [(sample.power_w, sample.power_source) for sample in reader.read()] == [(200.0, "power_instant")]


def test_a_driver_that_does_not_sample_is_asked_for_that_once() -> None:
    gpu = FakeGpu("GPU-0")
    reader = GpuReader(*find_gpus(["GPU-0"], FakeNvml(gpu)), VirtualClock(), buffered=True)
    assert [reader.read()[-1].power_source for _ in range(3)] == ["power_instant"] * 3
    assert gpu.calls.count("buffered_power") == 1
    assert not reader.problems()


@pytest.mark.parametrize("ahead_s", [3600.0, -5.0])
def test_samples_stamped_by_another_clock_are_not_used(ahead_s: float) -> None:
    clock = VirtualClock()
    far_us = round(1e6 * (clock.wall().timestamp() + ahead_s))
    gpu = FakeGpu("GPU-0", readings={"buffered_power": ((far_us, 100.0),)})
    reader = GpuReader(*find_gpus(["GPU-0"], FakeNvml(gpu)), clock, buffered=True)
    reader._newest_us = far_us - 1  # as after a step of the machine's clock
    assert [sample.power_source for sample in reader.read()] == ["power_instant"]
    assert "buffered power (1 times); first because none of the driver's own samples has a time" in reader.problems()[0]


def test_one_absurd_sample_of_the_driver_costs_itself_alone() -> None:
    clock = VirtualClock()
    taken = [(clock.now() - 0.06, 100.0), (clock.now() - 0.04, 4_294_967.295), (clock.now() - 0.02, 120.0)]
    reader = buffered_reader(clock, taken)
    assert [sample.power_w for sample in reader.read()] == [100.0, 120.0]
    assert "a sample of the driver's own (1 times); first because 4.29497e+06 W is not a power" in reader.problems()[0]
    assert reader.read() == ()


def test_a_clock_of_the_machine_that_is_set_back_costs_no_samples() -> None:
    clock = VirtualClock()
    taken: list[tuple[float, float]] = [(clock.now() - 0.02, 100.0)]
    reader = buffered_reader(clock, taken)
    assert len(reader.read()) == 1
    reader._newest_us = (reader._newest_us or 0) + 3_600_000_000  # what was seen last lies an hour ahead now
    clock.sleep(0.1)
    taken.append((clock.now() - 0.02, 200.0))
    assert [sample.power_w for sample in reader.read()][-1] == 200.0
    assert not reader.problems()


def test_time_never_runs_backwards() -> None:
    clock = VirtualClock()
    ages = iter([0.01, 0.05, 0.03])
    reader = gpu_reader(clock, power_instant=lambda: stamped(clock, next(ages)))
    times = [reader.read()[-1].time_s for _ in range(3)]
    assert times == sorted(times)


def test_other_failures_are_tried_again() -> None:
    answers = iter([GpuDriverError("timeout"), 55.0])
    reader = gpu_reader(temperature_c=lambda: next(answers))
    assert [reader.read()[-1].temperature_c for _ in range(2)] == [None, 55.0]
