from __future__ import annotations

import pytest

from energy_fakes import listed
from fakes import EPOCH
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.window import Window, measurement_slice
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.exceptions import ExperimentError


def measured(*, seconds: float = 10.0, telemetry: bool = True) -> EnergyMeasurement:
    """100 W in the first half, 300 W in the second, by a meter that reads 5 % too high."""
    samples = [
        TelemetrySample(time_s=t / 10, power_w=100.0 if t / 10 < seconds / 2 else 300.0)
        for t in range(-2, int(seconds * 10) + 3)
    ]
    return EnergyMeasurement(
        start_s=0.0,
        end_s=seconds,
        total_j=1.05 * 200.0 * seconds,
        method="hardware_counter",
        scope="gpu",
        per_gpu_j={"GPU-0": 1.05 * 200.0 * seconds},
        counter_j=1.05 * 200.0 * seconds,
        components=(
            BudgetComponent(name="gain", kind="gain", half_width_j=100.0),
            BudgetComponent(name="edges", kind="counter_resolution", half_width_j=10.0),
        ),
        telemetry=listed({"GPU-0": samples}) if telemetry else None,
        meter="nvml",
    )


def window(energy: EnergyMeasurement) -> Window:
    times = [0.5 + i for i in range(10)]
    output = RequestOutput(0, 7, [1] * 10, "length", 0.0, times)
    return Window((output,), energy, EPOCH, EPOCH)


def config(**measurement: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"model": "m", "measurement": measurement})


def test_without_limits_the_whole_window_counts_and_the_meter_s_own_figure_stands() -> None:
    energy = measured()
    part = measurement_slice(config(), window(energy))
    assert part.methodology == "steady_state"
    assert part.energy is energy
    assert (part.tokens.input_tokens, part.tokens.output_tokens) == (7, 10)


def test_with_warm_up_off_the_methodology_is_total() -> None:
    off = ExperimentConfig.model_validate({"model": "m", "warmup": {"enabled": False}})
    assert measurement_slice(off, window(measured())).methodology == "total"


def test_skipped_ends_leave_the_tokens_and_joules_in_between() -> None:
    part = measurement_slice(config(skip_first_seconds=5.5, skip_last_seconds=2.0), window(measured()))
    assert part.methodology == "windowed"
    assert part.duration_s == pytest.approx(2.5)
    assert part.tokens.output_tokens == 2
    assert part.tokens.input_tokens == 0
    assert part.energy.total_j == pytest.approx(1.05 * 300.0 * 2.5, rel=0.01)
    assert part.energy.method == "power_integration"


def test_skipping_more_than_there_is_names_the_settings() -> None:
    with pytest.raises(ExperimentError, match="skip_first_seconds = 8"):
        measurement_slice(config(skip_first_seconds=8.0, skip_last_seconds=8.0), window(measured()))


def test_latencies_of_a_part_are_those_of_requests_begun_and_ended_in_it() -> None:
    early = RequestOutput(0, 7, [1, 1], "length", 0.5, [1.0, 2.0])
    inside = RequestOutput(1, 7, [1, 1], "length", 3.0, [4.0, 5.0])
    late = RequestOutput(2, 7, [1, 1], "length", 8.0, [8.5, 9.5])
    energy = measured()
    some = Window((early, inside, late), energy, EPOCH, EPOCH)
    part = measurement_slice(config(skip_first_seconds=2.0, skip_last_seconds=2.0), some)
    assert part.whole_requests(some.outputs) == [inside]
    assert measurement_slice(config(), some).whole_requests(some.outputs) is some.outputs
