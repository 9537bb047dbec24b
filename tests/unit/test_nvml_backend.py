"""What a GPU window's readings are worth: `gpu_measurement` on readings made by hand, without NVML or time."""

from __future__ import annotations

import pytest

from energy_fakes import listed, steady
from fake_nvml import FakeGpu, FakeNvml
from llenergymeasure.core.energy.boards import known_sampling
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.strategies import counter_fault
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.energy.types import BoardRecord, CounterRead, EnergyMeasurement, GpuWindow, SensorDescription
from llenergymeasure.core.gpu.driver import Gpu, GpuDriverError, find_gpus
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.exceptions import EnergyError

START_S, END_S = 100.0, 120.0


def reads(first_s: float, energies_j: list[float]) -> tuple[CounterRead, ...]:
    """Reads 10 ms apart."""
    return tuple(CounterRead(first_s + i / 100, first_s + i / 100, energy) for i, energy in enumerate(energies_j))


def counted(power_w: float, device: str = "GPU-0", **more: object) -> BoardRecord:
    """A board whose counter moved right before the window and again 0.1 s after it, at constant power."""
    base = 1000.0
    total = power_w * (END_S - START_S)
    values: dict[str, object] = {
        "device": device,
        "board": device,
        "has_counter": True,
        "before": reads(START_S - 0.02, [base - 0.1 * power_w, base]),
        "after": reads(END_S + 0.001, [base + total] * 9 + [base + total + 0.1 * power_w] * 2),
        "power_limit_w": 700.0,
        **more,
    }
    return BoardRecord(**values)  # type: ignore[arg-type]


def trace(power_w: float) -> list[TelemetrySample]:
    return steady(power_w, START_S, END_S)


def measure(*boards: BoardRecord, **traces: list[TelemetrySample]) -> EnergyMeasurement:
    telemetry = listed({name.replace("_", "-"): samples for name, samples in traces.items()})
    window = GpuWindow(START_S, END_S, boards, sampling_interval_s=0.1, gain_uncertainty_pct=5.0, meter="nvml")
    return gpu_measurement(window, telemetry)


def codes(energy: EnergyMeasurement) -> set[WarningCode]:
    return {note.code for note in energy.notes}


def test_the_counter_is_the_answer_and_the_integral_its_witness() -> None:
    energy = measure(counted(300.0), GPU_0=trace(300.0))
    assert energy.method == "hardware_counter"
    assert energy.total_j == energy.fused_j == pytest.approx(6000.0, rel=0.002)
    assert energy.counter_j == pytest.approx(6000.0)
    assert energy.integral_j == pytest.approx(6000.0)
    assert energy.audit is not None
    assert energy.audit.agrees
    assert energy.audit.bound_pct <= 2.0
    assert not energy.notes


def test_several_boards_add_up_with_one_budget() -> None:
    energy = measure(counted(300.0), counted(100.0, "GPU-1"), GPU_0=trace(300.0), GPU_1=trace(100.0))
    assert energy.total_j == pytest.approx(8000.0, rel=0.002)
    assert energy.per_gpu_j == pytest.approx({"GPU-0": 6000.0, "GPU-1": 2000.0}, rel=0.003)
    gain = next(part for part in energy.components if part.kind == "gain")
    assert gain.half_width_j == pytest.approx(0.05 * 8000.0, rel=0.01)
    own = {device: parts[0].half_width_j for device, parts in energy.per_gpu_components.items()}
    assert own == pytest.approx({"GPU-0": 300.0, "GPU-1": 100.0}, rel=0.01)


@pytest.mark.parametrize(("off", "agrees"), [(1.0, True), (1.008, True), (1.06, False), (0.9, False)])
def test_methods_that_differ_by_more_than_their_uncertainty_are_told(off: float, agrees: bool) -> None:
    energy = measure(counted(300.0), GPU_0=trace(300.0 * off))
    assert (WarningCode.ENERGY_METHODS_DISAGREE in codes(energy)) is not agrees
    assert energy.total_j is not None
    if not agrees:
        (note,) = energy.notes
        assert "6000.0 J" in note.message
        assert f"{6000 * off:.1f} J" in note.message


def test_methods_that_contradict_each_other_leave_no_figure() -> None:
    energy = measure(counted(300.0), GPU_0=trace(100.0))
    assert energy.total_j is None
    assert energy.method is None
    assert energy.per_gpu_j == {"GPU-0": None}
    assert energy.components == ()
    assert (energy.counter_j, energy.integral_j) == (pytest.approx(6000.0), pytest.approx(2000.0))
    assert codes(energy) == {WarningCode.ENERGY_METHODS_DISAGREE}


def many(*seen_w: float) -> EnergyMeasurement:
    """Boards whose counters say 300 W, and whose samples say this."""
    boards = [counted(300.0, f"GPU-{number}") for number in range(len(seen_w))]
    return measure(*boards, **{f"GPU_{number}": trace(watts) for number, watts in enumerate(seen_w)})


def test_one_broken_board_among_many_leaves_no_figure() -> None:
    energy = many(*[300.0] * 7, 400.0)
    assert energy.total_j is None
    assert energy.audit is not None
    assert energy.audit.disagreement_pct == pytest.approx(4.2, abs=0.1)  # in the sum it is a small matter
    assert any("counter of GPU-7" in note.message and "cannot both be right" in note.message for note in energy.notes)
    assert codes(energy) == {WarningCode.ENERGY_METHODS_DISAGREE}


def test_boards_that_are_wrong_in_opposite_directions_are_told() -> None:
    energy = many(300.0, 270.0, 330.0)
    assert energy.total_j == pytest.approx(18000.0, rel=0.002)
    assert energy.audit is not None
    assert not energy.audit.agrees
    assert [note.message[:28] for note in energy.notes] == [
        "the energy counter of GPU-1 ",
        "the energy counter of GPU-2 ",
    ]


def test_a_board_that_is_known_beside_a_lost_one_has_its_uncertainty() -> None:
    lost = counted(0.0, "GPU-1", has_counter=False, before=(), after=())
    energy = measure(counted(0.0, has_counter=False, before=(), after=()), lost, GPU_0=trace(300.0))
    assert (energy.total_j, energy.components) == (None, ())
    assert energy.per_gpu_j == {"GPU-0": pytest.approx(6000.0), "GPU-1": None}
    assert energy.per_gpu_components["GPU-0"][0].kind == "gain"
    assert set(energy.per_gpu_components) == {"GPU-0"}


def test_a_board_without_a_counter_is_integrated() -> None:
    energy = measure(counted(0.0, has_counter=False, before=(), after=()), GPU_0=trace(150.0))
    assert energy.method == "power_integration"
    assert energy.total_j == energy.integral_j == pytest.approx(3000.0)
    assert energy.counter_j is None
    assert energy.audit is None
    assert not energy.notes  # nothing is wrong with such a board


FAULTS = {
    "stood still": {"after": reads(END_S, [1000.0])},
    "backwards": {"after": reads(END_S, [500.0])},
    "jumped": {"after": reads(END_S, [900_000.0, 900_100.0])},
    "not read": {"after": ()},
    "permission": {"before": (), "after": (), "counter_problem": "permission denied"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_counter_is_replaced_by_the_integral_and_the_note_says_why(fault: str) -> None:
    broken = FAULTS[fault]
    if fault == "stood still":
        broken = {"before": reads(START_S - 0.01, [1000.0]), **broken}
    energy = measure(counted(300.0, **broken), GPU_0=trace(300.0))
    assert energy.method == "power_integration"
    assert energy.total_j == pytest.approx(6000.0)
    assert energy.counter_j is None
    (note,) = energy.notes
    assert fault in note.message


@pytest.mark.parametrize("fault", FAULTS)
def test_without_samples_a_broken_counter_leaves_no_figure(fault: str) -> None:
    broken = FAULTS[fault]
    if fault == "stood still":
        broken = {"before": reads(START_S - 0.01, [1000.0]), **broken}
    energy = measure(counted(300.0, **broken), GPU_0=[])
    assert energy.total_j is None
    assert codes(energy) == {WarningCode.ENERGY_UNAVAILABLE}
    assert fault in energy.notes[0].message


def test_a_window_that_mixes_methods_uses_the_integral_for_every_board() -> None:
    without = counted(0.0, "GPU-1", has_counter=False, before=(), after=())
    energy = measure(counted(300.0), without, GPU_0=trace(297.0), GPU_1=trace(100.0))
    assert energy.method == "power_integration"
    assert energy.per_gpu_j == pytest.approx({"GPU-0": 5940.0, "GPU-1": 2000.0})


def test_one_board_without_any_figure_leaves_the_sum_unknown_and_the_others_known() -> None:
    dead = counted(0.0, "GPU-1", before=(), after=(), counter_problem="GPU is lost")
    energy = measure(counted(300.0), dead, GPU_0=trace(300.0), GPU_1=[])
    assert energy.total_j is None
    assert energy.per_gpu_j["GPU-1"] is None
    assert "GPU is lost" in energy.notes[-1].message


def test_samples_that_stop_before_the_end_cannot_check_the_counter() -> None:
    energy = measure(counted(300.0), GPU_0=trace(300.0)[:100])
    assert energy.total_j == pytest.approx(6000.0, rel=0.002)
    assert energy.integral_j is None
    assert "could not be checked" in energy.notes[0].message


def test_a_long_hole_in_the_trace_is_not_bridged() -> None:
    holed = [s for s in trace(300.0) if not 105.0 < s.time_s < 110.0]
    energy = measure(counted(0.0, has_counter=False, before=(), after=()), GPU_0=holed)
    assert energy.total_j is None
    assert "there is no power sample" in energy.notes[0].message


@pytest.mark.parametrize(
    ("record", "scope"),
    [
        (counted(300.0), "gpu"),
        (counted(300.0, includes_module=True), "gpu_module"),
        (counted(300.0, device="MIG-1", board="GPU-0"), "gpu_board"),
    ],
)
def test_the_scope_says_what_the_joules_include(record: BoardRecord, scope: str) -> None:
    telemetry = {record.device.replace("-", "_"): trace(300.0)}
    assert measure(record, **telemetry).scope == scope


PERIOD = SensorDescription(counter_period_s=0.1, counter_period_tolerance_s=0.002)


def test_a_counter_that_moves_and_answers_at_once_is_beyond_reproach() -> None:
    assert counter_fault(reads(0.0, [1.0] * 8 + [2.0]), PERIOD) is None
    assert counter_fault(reads(0.0, [1.0] * 9), PERIOD) is None  # 80 ms without a move are nothing
    assert counter_fault(reads(0.0, [1.0] * 30), None) is None  # and who knows how often this one moves


def test_a_counter_that_misses_its_next_move_stands_still() -> None:
    fault = counter_fault(reads(0.0, [1.0] * 13), PERIOD)
    assert fault == "the energy counter stood still for 120 ms, and it moves every 100 ms otherwise"


def test_a_counter_that_takes_long_to_answer_says_too_little() -> None:
    fault = counter_fault((CounterRead(0.0, 0.3, 1.0), CounterRead(0.3, 0.301, 2.0)), PERIOD)
    assert fault == "reading the energy counter took 300 ms"


def test_boards_are_found_by_uuid_and_each_once() -> None:
    sliced = FakeGpu("GPU-s", mig=(FakeGpu("MIG-1"), FakeGpu("MIG-2")))
    nvml = FakeNvml(FakeGpu("GPU-w"), sliced)
    boards = find_gpus(["MIG-2", "MIG-1", "GPU-w"], nvml)
    assert [(b.uuid, b.board_uuid, b.index, b.is_mig) for b in boards] == [
        ("MIG-2", "GPU-s", 1, True),
        ("GPU-w", "GPU-w", 0, False),
    ]


def test_an_unknown_device_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(EnergyError, match="GPU-x; it has GPU-w"):
        find_gpus(["GPU-x"], FakeNvml(FakeGpu("GPU-w")))


def board(capability: object) -> Gpu:
    (found,) = find_gpus(["GPU-0"], FakeNvml(FakeGpu("GPU-0", readings={"compute_capability": capability})))
    return found


@pytest.mark.parametrize(
    ("capability", "source", "window_s"),
    [
        ("7.0", "power_usage", 0.010),
        ("7.5", "power_usage", 0.100),
        ("8.0", "power_usage", 0.025),
        ("8.6", "power_usage", 1.0),
        ("9.0", "power_usage", 1.0),
        ("9.0", "power_instant", 0.025),
        ("10.0", "power_usage", 1.0),
        (GpuDriverError("unknown"), "power_usage", 1.0),
        (GpuDriverError("unknown"), "power_instant", 0.1),
    ],
)
def test_what_a_power_sample_averages_over_is_known_by_board_and_source(
    capability: object, source: str, window_s: float
) -> None:
    assert known_sampling(board(capability), source).averaging_window_s == window_s  # type: ignore[arg-type]
