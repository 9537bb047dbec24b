"""Parts of a metered window: their joules by hand, and their stated intervals against the truth."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nvml.loads import ALL_LOADS, SAMPLED_LOADS, Load
from tests.nvml.virtual import Counter
from tests.nvml.virtual_run import VirtualWindow, by_nvml, quantile, random_board, run_window
from tests.nvml.waveform import square

from energy_fakes import listed
from llenergymeasure.core.energy.integrate import PartUnknownError, TracedWindow, energy_between, sampling_interval_s
from llenergymeasure.core.energy.telemetry import Telemetry, TelemetrySample
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.domain.energy import BudgetComponent, comparative_half_width
from llenergymeasure.domain.warnings import WarningCode

STEP = [TelemetrySample(t / 10, 100.0 if t < 50 else 300.0) for t in range(-2, 103)]
"""100 W for five seconds, then 300 W: 2,000 J in ten seconds, but for the slope between two samples."""


def metered(total_j: float = 2100.0, **more: object) -> EnergyMeasurement:
    """A window of ten seconds by a meter that reads 5 % more than its samples."""
    energy = EnergyMeasurement(
        start_s=0.0,
        end_s=10.0,
        total_j=total_j,
        method="hardware_counter",
        scope="gpu",
        per_gpu_j={"GPU-0": total_j},
        counter_j=total_j,
        components=(
            BudgetComponent(name="sensor gain", kind="gain", half_width_j=105.0),
            BudgetComponent(name="counter resolution", kind="counter_resolution", half_width_j=10.0),
        ),
        telemetry=listed({"GPU-0": STEP}),
        meter="nvml",
    )
    return replace(energy, **more)  # type: ignore[arg-type]


def half_widths(energy: EnergyMeasurement) -> dict[str, float]:
    return {component.name: component.half_width_j for component in energy.components}


def test_a_part_gets_the_share_of_the_meters_joules_that_its_samples_show() -> None:
    part = energy_between(metered(), 6.0, 8.0)
    assert part.total_j == pytest.approx(1.05 * 600.0, rel=0.005)
    assert part.per_gpu_j == {"GPU-0": part.total_j}
    assert part.integral_j == pytest.approx(600.0)
    assert (part.method, part.counter_j) == ("power_integration", None)


@given(st.floats(0.1, 9.9))
def test_parts_of_a_window_add_up_to_the_whole(at_s: float) -> None:
    energy = metered()
    first, second = energy_between(energy, 0.0, at_s), energy_between(energy, at_s, 10.0)
    assert first.total_j is not None
    assert second.total_j is not None
    assert first.total_j + second.total_j == pytest.approx(energy.total_j)


def two_boards(**more: object) -> EnergyMeasurement:
    """The same window on two boards, the second of which draws 200 W."""
    return metered(
        total_j=3000.0,
        per_gpu_j={"GPU-0": 2000.0, "GPU-1": 1000.0},
        telemetry=listed({"GPU-0": STEP, "GPU-1": [replace(s, power_w=200.0) for s in STEP]}),
        **more,
    )


@given(st.lists(st.floats(0.0, 10.0), max_size=30))
def test_a_window_that_is_split_at_many_instants_gives_each_gap_its_part(inner_s: list[float]) -> None:
    traced, instants_s = TracedWindow(two_boards(), ()), sorted({0.0, *inner_s, 10.0})
    parts_j = [traced.part([gap]).total_j for gap in pairwise(instants_s)]
    assert traced.split(instants_s) == pytest.approx(parts_j, rel=1e-12, abs=1e-9)


def test_each_board_is_scaled_to_its_own_counter() -> None:
    part = energy_between(two_boards(), 8.0, 10.0)
    assert part.per_gpu_j["GPU-0"] == pytest.approx(600.0, rel=0.005)
    assert part.per_gpu_j["GPU-1"] == pytest.approx(100.0 * 2)


def test_each_board_of_a_part_has_its_own_budget() -> None:
    """Gains add up linearly over boards; each is its share of what the board's own gain was over the window."""
    gains = {"GPU-0": (BudgetComponent(name="sensor gain", kind="gain", half_width_j=100.0),),
             "GPU-1": (BudgetComponent(name="sensor gain", kind="gain", half_width_j=50.0),)}  # fmt: skip
    part = energy_between(two_boards(per_gpu_components=gains), 8.0, 10.0)
    own = {d: part.per_gpu_components[d][0].half_width_j for d in gains}
    assert own == {"GPU-0": pytest.approx(30.0, rel=0.01), "GPU-1": pytest.approx(10.0)}
    assert half_widths(part)["sensor gain"] == pytest.approx(sum(own.values()))


def test_errors_of_the_meter_shrink_with_the_part() -> None:
    budget = half_widths(energy_between(metered(), 5.5, 10.0))  # 67 % of the energy
    assert budget["sensor gain"] == pytest.approx(0.67 * 105.0, rel=0.02)
    assert budget["counter resolution"] == pytest.approx(0.67 * 10.0, rel=0.02)


def test_an_edge_near_which_the_power_changes_makes_a_part_less_certain() -> None:
    """A quarter of the time that a sample is the mean of, at the 200 W that the power changes by near one edge only."""
    at_the_step, past_it = (energy_between(metered(), start_s, 10.0) for start_s in (5.0, 7.0))
    assert half_widths(at_the_step)["sensor lag"] == pytest.approx(1.05 * 0.025 * 200.0, rel=0.01)
    assert half_widths(past_it)["sensor lag"] < 0.5 * half_widths(at_the_step)["sensor lag"]


def test_the_whole_window_as_a_part_is_as_certain_as_the_meter() -> None:
    energy = metered()
    whole = energy_between(energy, 0.0, 10.0)
    assert whole.total_j == pytest.approx(energy.total_j)
    assert comparative_half_width(whole.components) == pytest.approx(comparative_half_width(energy.components))


def test_a_part_of_an_integral_has_the_errors_of_its_own_samples() -> None:
    own = (
        BudgetComponent(name="sampling", kind="sampling", half_width_j=50.0),
        BudgetComponent(name="sensor gain", kind="gain", half_width_j=100.0),
    )
    budget = half_widths(energy_between(metered(2010.0, method="power_integration", components=own), 6.0, 8.0))
    assert budget["sampling"] == pytest.approx(0.0)  # nothing changes between six and eight seconds
    assert budget["sensor gain"] == pytest.approx(30.0, rel=0.01)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (None, "gives no power samples"),
        ({"GPU-0": STEP[:30]}, "do not reach over the window"),
        ({"GPU-0": [TelemetrySample(s.time_s, None) for s in STEP]}, "gives no power samples"),
        ({"GPU-1": STEP}, "no power samples of GPU-0"),
        ({"GPU-0": [replace(s, power_w=0.0) for s in STEP]}, "add up to nothing"),
    ],
    ids=["no sampler", "too short", "no power", "another board", "no watts"],
)
def test_samples_that_cannot_tell_a_part_give_none_with_the_reason(
    samples: dict[str, list[TelemetrySample]] | None, reason: str
) -> None:
    part = energy_between(metered(telemetry=None if samples is None else listed(samples)), 1.0, 2.0)
    assert part.total_j is None
    assert part.components == ()
    (note,) = part.notes
    assert note.code is WarningCode.ENERGY_UNAVAILABLE
    assert reason in note.message


@pytest.mark.parametrize(
    ("samples", "interval_s"),
    [
        (STEP, 0.1),
        (STEP[:30], 0.1),
        (STEP[60:], 0.1),
        (STEP[40:41], 10.0),
        ([TelemetrySample(20.0, 100.0)], 10.0),
        ([TelemetrySample(-5.0, 100.0), TelemetrySample(-4.0, 100.0)], 10.0),
        ([TelemetrySample(s.time_s, None) for s in STEP], 10.0),
    ],
    ids=["all", "stopped early", "began late", "one", "after the window", "before the window", "no power"],
)
def test_the_sampling_interval_of_samples_that_do_not_cover_the_window(
    samples: list[TelemetrySample], interval_s: float
) -> None:
    assert sampling_interval_s(metered(telemetry=listed({"GPU-0": samples}))) == pytest.approx(interval_s)


@pytest.mark.parametrize("telemetry", [None, listed({})])
def test_without_samples_there_is_no_sampling_interval(telemetry: Telemetry | None) -> None:
    assert sampling_interval_s(metered(telemetry=telemetry)) is None


def test_without_energy_there_is_nothing_to_divide() -> None:
    unmeasured = metered(total_j=None)
    assert energy_between(unmeasured, 1.0, 2.0).total_j is None
    with pytest.raises(PartUnknownError, match="no energy was measured"):
        TracedWindow(unmeasured, ())


@dataclass(frozen=True)
class Draw:
    error_j: float
    half_width_j: float


def draws(architecture: str, loads: Sequence[Load], count: int, *, counter: bool) -> list[Draw]:
    """Parts of any length and place of windows between 3 and 20 s."""
    draw, found = random.Random(31), []
    for i in range(count):
        board = random_board(architecture, loads[i % len(loads)](draw), draw)
        board.counter = Counter(phase_s=draw.uniform(0.0, 0.1)) if counter else None
        window = run_window(board, draw.uniform(3.0, 20.0), draw)
        energy = by_nvml(window, board)
        if energy.total_j is None:  # a fast load that fooled the sensor: the audit has said so
            continue
        start_s = window.start_s + draw.choice([0.0, draw.uniform(0.0, 0.4)]) * energy.duration_sec
        end_s = window.end_s - draw.choice([0.0, draw.uniform(0.0, 0.4)]) * energy.duration_sec
        part = energy_between(energy, start_s, end_s)
        assert part.total_j is not None
        error_j = abs(part.total_j - board.true_energy_j(start_s, end_s))
        found.append(Draw(error_j, comparative_half_width(part.components)))
    assert len(found) > 0.9 * count
    return found


def covered_share(found: Sequence[Draw]) -> float:
    return sum(d.error_j <= d.half_width_j for d in found) / len(found)


@pytest.mark.parametrize("counter", [True, False], ids=["counted", "integrated"])
@pytest.mark.parametrize("architecture", ["pascal", "turing", "hopper"])
def test_the_stated_interval_of_a_part_covers_the_truth_and_is_not_too_wide(architecture: str, counter: bool) -> None:
    found = draws(architecture, SAMPLED_LOADS, 120, counter=counter)
    assert covered_share(found) >= 0.95
    assert statistics.fmean(d.half_width_j for d in found) <= 2.0 * quantile([d.error_j for d in found], 0.95)


def test_phases_cut_out_of_integrated_samples_have_the_doubt_of_the_whole_too() -> None:
    """The whole is summed up without a word of where the load changes, and the phases are scaled to it."""
    draw, found = random.Random(32), []
    for _ in range(120):
        busy_s, period_s, low_w, high_w = (draw.uniform(*of) for of in ((0.3, 1.0), (1.2, 3.0), (120, 300), (350, 650)))
        first_s = draw.uniform(0.0, period_s)
        load = square(low_w, high_w, period_s, duty=busy_s / period_s, phase_s=first_s)
        board = random_board("pascal", load, draw)
        window = run_window(board, 4.0 * period_s, draw)
        begins_s = [first_s + number * period_s for number in range(int(window.end_s / period_s) + 1)]
        cut = [(max(at_s, window.start_s), min(at_s + busy_s, window.end_s)) for at_s in begins_s]
        spans = [span for span in cut if span[0] < span[1]]
        part = TracedWindow(by_nvml(window, board), [edge_s for span in spans for edge_s in span]).part(spans)
        true_j = sum(board.true_energy_j(*span) for span in spans)
        found.append(Draw(abs(part.total_j - true_j), comparative_half_width(part.components)))
    assert covered_share(found) >= 0.95
    assert statistics.fmean(d.half_width_j for d in found) <= 2.0 * quantile([d.error_j for d in found], 0.95)


@pytest.mark.parametrize("follows_sensor", [True, False])
@pytest.mark.parametrize("architecture", ["turing", "hopper"])
def test_a_part_by_a_counter_of_unknown_kind_covers_both(architecture: str, follows_sensor: bool) -> None:
    draw, found = random.Random(33), []
    for i in range(60):
        board = random_board(architecture, SAMPLED_LOADS[i % len(SAMPLED_LOADS)](draw), draw)
        board.counter = Counter(phase_s=draw.uniform(0.0, 0.1), follows_sensor=follows_sensor)
        window = run_window(board, draw.uniform(3.0, 10.0), draw)
        energy = by_nvml(window, board, follows=None)
        start_s = window.start_s + draw.uniform(0.0, 0.4) * energy.duration_sec
        part = energy_between(energy, start_s, window.end_s)
        assert part.total_j is not None
        error_j = abs(part.total_j - board.true_energy_j(start_s, window.end_s))
        found.append(Draw(error_j, comparative_half_width(part.components)))
    assert covered_share(found) >= 0.95


@pytest.mark.parametrize("architecture", ["volta", "ampere"])
def test_it_covers_with_loads_that_samples_cannot_follow_among_them(architecture: str) -> None:
    assert covered_share(draws(architecture, ALL_LOADS, 120, counter=True)) >= 0.95


@pytest.mark.parametrize(("architecture", "margin"), [("volta", 2.0), ("turing", 2.0), ("hopper", 6.0)])
def test_phases_that_the_load_follows_are_told_without_bias_and_inside_their_interval(
    architecture: str, margin: float
) -> None:
    """600 W while prefilling, 300 W while decoding, in turns; no sensor tells the time of a change exactly.

    The samples of a real Hopper board have a tail that the scripted ones lack, and its interval leaves room for that.
    """
    draw, found, biases = random.Random(7), [], []
    for _ in range(80):
        period_s, duty = draw.uniform(2.0, 8.0), draw.uniform(0.3, 0.6)
        phase_s = draw.uniform(0.0, period_s)
        board = random_board(architecture, square(300.0, 600.0, period_s, duty, phase_s), draw)
        window = run_window(board, draw.uniform(3.0, 12.0), draw)
        energy = by_nvml(window, board)
        rises = (phase_s + k * period_s for k in range(-2, 40))
        spans = list(clipped(((rise_s, rise_s + duty * period_s) for rise_s in rises), window))
        if not spans:
            continue
        prefill = TracedWindow(energy, [edge_s for span in spans for edge_s in span]).part(spans)
        true_j = sum(board.true_energy_j(*span) for span in spans)
        found.append(Draw(abs(prefill.total_j - true_j), comparative_half_width(prefill.components)))
        biases.append((prefill.total_j - true_j) / true_j)
    assert abs(statistics.fmean(biases)) < 0.01
    assert covered_share(found) >= 0.95
    assert statistics.fmean(d.half_width_j for d in found) <= margin * quantile([d.error_j for d in found], 0.95)


def clipped(spans: Iterable[tuple[float, float]], window: VirtualWindow) -> Iterator[tuple[float, float]]:
    for start_s, end_s in spans:
        if min(end_s, window.end_s) - max(start_s, window.start_s) > 0.3:
            yield max(start_s, window.start_s), min(end_s, window.end_s)
