from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_fakes import logged, rows
from llenergymeasure.core.energy.telemetry import SampleLog, SamplerReport, Telemetry, TelemetrySample, log_problems

numbers = st.none() | st.floats(allow_nan=False)
samples = st.builds(
    TelemetrySample,
    time_s=st.floats(allow_nan=False),
    power_w=numbers,
    temperature_c=numbers,
    sm_clock_mhz=numbers,
    memory_clock_mhz=numbers,
    sm_utilisation_pct=numbers,
    memory_used_mb=numbers,
    throttle_reasons=st.none() | st.integers(0, 2**62),
    power_source=st.none() | st.sampled_from(["power_instant", "power_instant_module", "power_usage", "rapl"]),
)


@given(st.lists(samples, max_size=40), st.integers(1, 500))
def test_samples_come_back_bit_for_bit_whether_spilled_or_not(taken: list[TelemetrySample], chunk_bytes: int) -> None:
    log = SampleLog(chunk_bytes=chunk_bytes)
    logged(taken, log)
    assert rows(log.blocks()) == taken
    assert rows(log.blocks()) == taken  # and can be read again
    assert len(log) == len(taken)
    log.close()


def test_memory_stays_flat_while_samples_pile_up(tmp_path: Path) -> None:
    log = SampleLog(tmp_path, chunk_bytes=4096)
    sample = TelemetrySample(1.0, 100.0)
    for _ in range(5000):
        log.append(sample)
    assert log.memory_bytes < 4096
    assert len(log) == 5000
    assert list(tmp_path.iterdir()) == [], "the spill file has no name, so nothing is left behind"
    log.close()


def fill(log: SampleLog, count: int) -> list[TelemetrySample]:
    taken = [TelemetrySample(float(i), 100.0 + i) for i in range(count)]
    logged(taken, log)
    return taken


@contextmanager
def short_files() -> Iterator[None]:
    """The process cannot write files longer than 10 kB: what a full disk looks like, short writes included.

    Only for as long as the block runs: the test run's own report may go to a file, and that is longer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_no_sample_while_memory_lasts() -> None:
    log = SampleLog(chunk_bytes=4096)
    with short_files():
        taken = fill(log, 1000)
    assert rows(log.blocks()) == taken
    assert log.lost == 0
    (problem,) = log_problems({"GPU-0": log})
    assert "stay in memory" in problem
    log.close()


def test_samples_that_nothing_could_keep_are_counted() -> None:
    log = SampleLog(chunk_bytes=4096, memory_limit_bytes=20_000)
    with short_files():
        taken = fill(log, 1000)
    kept = rows(log.blocks())
    assert kept == taken[: len(kept)]
    assert log.lost == 1000 - len(kept) > 0
    (problem,) = log_problems({"GPU-0": log})
    assert f"{log.lost} samples of GPU-0 are lost" in problem
    log.close()


def test_a_missing_spill_directory_is_told_and_costs_nothing() -> None:
    log = SampleLog(Path(tempfile.gettempdir()) / "there-is-no-such-directory", chunk_bytes=1024)
    taken = fill(log, 100)
    assert rows(log.blocks()) == taken
    assert "No such file" in next(log_problems({"GPU-0": log}))


def test_telemetry_names_only_devices_that_were_seen() -> None:
    seen, unseen = SampleLog(), SampleLog()
    fill(seen, 3)
    telemetry = Telemetry({"GPU-0": seen, "GPU-1": unseen}, SamplerReport(3, 0, 0.001, 0.3, 0.001))
    assert telemetry.devices == ("GPU-0",)
    assert len(telemetry.column("GPU-0", "time_s")) == 3
    telemetry.close()


def test_the_report_says_what_sampling_costs() -> None:
    report = SamplerReport(ticks=100, missed_deadlines=0, cpu_s=0.02, duration_s=10.0, longest_tick_s=0.001)
    assert report.us_per_tick == pytest.approx(200.0)
    assert report.core_share == pytest.approx(0.002)
