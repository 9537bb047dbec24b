"""Settings of the machine at work in the real meter, read back from what it measured on a scripted board."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
import pytest

pytest.importorskip("torch", reason="the bench of a machine holds its real engine")

from effects_bench import ExperimentBench, no_warnings, ready_snapshot
from energy_fakes import farthest_j
from fakes import StepEngine
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.harness import Measurement, measure
from llenergymeasure.domain.energy import EnergyUncertainty
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.local import bench_here

if TYPE_CHECKING:
    from tests.nvml.fixtures import ScriptedNvmlFactory


class Board:
    """A scripted GPU, and an engine on it that takes 0.8 s for an experiment."""

    def __init__(self, factory: ScriptedNvmlFactory, directory: Path) -> None:
        # Not one whose driver samples by itself: that is read as often, and its samples are 20 ms apart all the same.
        self.uuid = factory.gpu("a100", power_w=300.0).uuid
        self.experiments = ExperimentBench(directory)

    def measure(self, **sections: Any) -> Measurement:
        """Measure on a machine with these settings."""
        machine = UserConfig.model_validate({"measurement": {"energy_backend": "nvml"}, **sections})
        config = self.experiments.config(measurement={"save_trace": True})
        work_dir = self.experiments.directory
        engine = StepEngine(SystemClock(), step_s=0.02, used_devices=(self.uuid,))  # type: ignore[arg-type]
        bench = replace(
            bench_here(Job(config, machine, work_dir)),
            engine=engine,
            preflight=no_warnings,
            environment=ready_snapshot,
        )
        return measure(config, bench, "id", work_dir)


@pytest.fixture
def board(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> Board:
    return Board(scripted_nvml, tmp_path)


def sampling_interval_s(measurement: Measurement) -> float:
    """The usual time between two readings, from the trace; readings are stamped where the sensor was read."""
    trace = measurement.artefacts.trace
    assert trace is not None
    times_s = pyarrow.parquet.read_table(trace)["time_s"].to_pylist()
    return median(after - before for before, after in pairwise(times_s))


@pytest.mark.parametrize("interval_ms", [20, 200])
def test_nvml_poll_interval_is_the_time_between_power_samples(board: Board, interval_ms: int) -> None:
    measurement = board.measure(advanced={"nvml_poll_interval_ms": interval_ms})
    # On a busy machine it may be longer, but not as long as that of the other case.
    assert 0.8 <= sampling_interval_s(measurement) / (interval_ms / 1000) < 5.0


def uncertainty_of(measurement: Measurement) -> EnergyUncertainty:
    uncertainty = measurement.record.uncertainty
    assert isinstance(uncertainty, EnergyUncertainty)
    return uncertainty


@pytest.mark.parametrize("gain_pct", [0.0, 20.0])
def test_power_gain_uncertainty_is_the_least_that_an_absolute_figure_can_be_trusted(
    board: Board, gain_pct: float
) -> None:
    measurement = board.measure(advanced={"power_gain_uncertainty_pct": gain_pct})
    stated, total_j = uncertainty_of(measurement), measurement.record.energy_metrics.total_energy_j
    assert total_j is not None
    assert stated.absolute_j == pytest.approx(math.hypot(stated.comparative_j, gain_pct / 100.0 * total_j))


def test_energy_backend_of_the_machine_is_the_meter_of_the_record(board: Board) -> None:
    measurement = board.measure()
    breakdown = measurement.record.energy_breakdown
    assert breakdown is not None
    assert breakdown.meter == "nvml"
    true_j = 300.0 * measurement.record.inference_metrics.inference_time_sec
    assert breakdown.raw_j == pytest.approx(true_j, abs=farthest_j(uncertainty_of(measurement).comparative_j))
