"""The step timers on a device that lags behind the host; device and clock are played by hand, PyTorch is not needed."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import pytest

from fakes import VirtualClock
from llenergymeasure.core.backends.pytorch.generation import DeviceStepTimer, HostStepTimer


class LaggingDevice:
    """A queue of work: the host adds to it at once, the device works it off in its own time."""

    def __init__(self, clock: VirtualClock, skew: float = 1.0) -> None:
        self.clock = clock
        self.skew = skew  # how fast the device's own timer runs
        self.done_s = clock.now()
        self.syncs = 0

    def work(self, seconds: float) -> None:
        self.done_s = max(self.done_s, self.clock.now()) + seconds

    def synchronize(self) -> None:
        self.syncs += 1
        self.clock.sleep(self.done_s - self.clock.now())

    def new_event(self) -> LaggingEvent:
        return LaggingEvent(self)


@dataclass
class LaggingEvent:
    device: LaggingDevice
    at_s: float | None = None

    def record(self, stream: object) -> None:
        assert stream == "stream"
        self.at_s = max(self.device.done_s, self.device.clock.now())

    def synchronize(self) -> None:
        assert self.at_s is not None
        self.device.clock.sleep(self.at_s - self.device.clock.now())

    def elapsed_time(self, end: LaggingEvent) -> float:
        assert self.at_s is not None
        assert end.at_s is not None
        return (end.at_s - self.at_s) * 1000.0 * self.device.skew


def device_timer(clock: VirtualClock, device: LaggingDevice) -> DeviceStepTimer:
    return DeviceStepTimer(clock, device.new_event, "stream", device.synchronize)


def run_batch(timer: DeviceStepTimer, device: LaggingDevice, steps_s: list[float]) -> tuple[float, array[float]]:
    started_s = timer.start()
    for seconds in steps_s:
        device.work(seconds)
        device.clock.sleep(0.0001)  # the host needs 0.1 ms to queue a step
        timer.step()
    return started_s, timer.finish()


def test_steps_are_stamped_when_the_device_is_done_although_the_host_is_long_past() -> None:
    clock = VirtualClock()
    device = LaggingDevice(clock)
    started_s, times_s = run_batch(device_timer(clock, device), device, [0.1, 0.02, 0.02, 0.07, 0.02])
    assert [time_s - started_s for time_s in times_s] == pytest.approx([0.1, 0.12, 0.14, 0.21, 0.23])


def test_the_host_waits_once_before_the_batch_and_never_within_it() -> None:
    clock = VirtualClock()
    device = LaggingDevice(clock)
    timer = device_timer(clock, device)
    timer.start()
    for _ in range(50):
        device.work(0.02)
        timer.step()
    assert device.syncs == 1
    assert clock.now() == 1000.0  # nobody waited for the second of queued work


def test_a_batch_opens_only_when_the_device_is_idle() -> None:
    clock = VirtualClock()
    device = LaggingDevice(clock)
    device.work(0.5)  # left over from something else
    started_s, times_s = run_batch(device_timer(clock, device), device, [0.1])
    assert started_s == pytest.approx(1000.5)
    assert times_s[0] - started_s == pytest.approx(0.1)


def test_batches_do_not_mix_when_events_are_used_again() -> None:
    clock = VirtualClock()
    device = LaggingDevice(clock)
    timer = device_timer(clock, device)
    _, long = run_batch(timer, device, [0.01] * 5)
    started_s, short = run_batch(timer, device, [0.03] * 2)
    assert len(long) == 5
    assert [time_s - started_s for time_s in short] == pytest.approx([0.03, 0.06])


def test_a_batch_without_a_step_has_no_times() -> None:
    clock = VirtualClock()
    timer = device_timer(clock, LaggingDevice(clock))
    timer.start()
    assert list(timer.finish()) == []


def test_on_the_host_a_step_is_done_when_its_hook_runs() -> None:
    clock = VirtualClock()
    timer = HostStepTimer(clock)
    started_s = timer.start()
    for seconds in (0.1, 0.02, 0.07):
        clock.sleep(seconds)
        timer.step()
    assert [time_s - started_s for time_s in timer.finish()] == pytest.approx([0.1, 0.12, 0.19])


def test_times_of_a_finished_batch_stay_when_the_next_one_opens() -> None:
    clock = VirtualClock()
    timer = HostStepTimer(clock)
    timer.start()
    timer.step()
    first = timer.finish()
    timer.start()
    timer.step()
    timer.step()
    assert len(first) == 1
