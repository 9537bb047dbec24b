"""One set of expectations for every energy backend, on hardware whose true energy is known."""

from __future__ import annotations

import importlib.util
import os
import pickle
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from tests.nvml.scripted import have_compiler

from energy_fakes import farthest_j
from energy_rigs import CHILD, RigRun, run_on_gpus, run_on_rapl
from llenergymeasure.core.gpu.driver import CPU_DEVICE
from llenergymeasure.domain.energy import absolute_half_width
from llenergymeasure.domain.warnings import WarningCode

LENGTHS_S = (1.5, 0.7, 3.0)

needs_gcc = pytest.mark.skipif(not have_compiler(), reason="the scripted NVML is built with gcc, which is missing")


def require(package: str) -> None:
    """Skip where a package is missing, without importing it: that takes seconds and belongs into the child."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module", params=["nvml", "zeus", "codecarbon", "rapl"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RigRun:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "rapl":
        return run_on_rapl(directory, LENGTHS_S)
    if not have_compiler():
        pytest.skip("the scripted NVML is built with gcc, which is not installed")
    if request.param != "nvml":
        require(request.param)
    return run_on_gpus(request.param, directory, LENGTHS_S)[0]


def test_it_proves_itself_available(run: RigRun) -> None:
    assert run.available


def test_the_window_opens_and_closes_when_it_is_asked_to(run: RigRun) -> None:
    for window in run.windows:
        assert window.asked_s <= window.energy.start_s
        assert window.stop_asked_s <= window.energy.end_s <= window.returned_s


def test_joules_are_true_but_for_what_the_counter_hides_at_the_edges(run: RigRun) -> None:
    for window in run.windows:
        assert window.energy.total_j is not None
        assert window.least_j <= window.energy.total_j <= window.most_j


def test_the_truth_lies_inside_the_stated_interval(run: RigRun) -> None:
    for window in run.windows:
        assert window.energy.total_j is not None
        stated_j = absolute_half_width(window.energy.components)
        assert stated_j > 0
        assert window.true_j - farthest_j(stated_j) <= window.energy.total_j <= window.true_j + farthest_j(stated_j)


def test_windows_do_not_add_up(run: RigRun) -> None:
    first, second, third = (window.energy.total_j for window in run.windows)
    assert first is not None
    assert second is not None
    assert third is not None
    assert second < first < third


def test_method_scope_and_meter_say_how_it_was_done(run: RigRun) -> None:
    for window in run.windows:
        assert window.energy.meter == run.name
        own = run.name in ("nvml", "rapl")
        assert window.energy.meter_version == ("" if own else metadata.version(run.name))
        assert window.energy.method == "hardware_counter"
        assert window.energy.scope == ("cpu_package" if run.name == "rapl" else "gpu")


def test_only_the_device_it_was_given_is_in_the_figures(run: RigRun) -> None:
    for window in run.windows:
        energy = window.energy
        if run.name == "rapl":
            assert energy.cpu_j == energy.total_j
            assert not energy.per_gpu_j
        else:
            assert energy.per_gpu_j == {run.device: energy.total_j}


def test_there_are_power_samples_before_during_and_after(run: RigRun) -> None:
    for window in run.windows:
        assert set(window.samples) == {run.device}
        times, _ = window.samples[run.device]
        assert times[0] <= window.energy.start_s
        assert times[-1] >= window.energy.end_s
        assert len(times) >= 5 * window.energy.duration_sec


def test_no_thread_is_left(run: RigRun) -> None:
    assert run.threads_left == 0


@needs_gcc
def test_nvml_agrees_with_the_truth_within_one_per_cent_over_ten_seconds(tmp_path: Path) -> None:
    """Two boards, of which one is used; its counter is not read inside the window, the other one's never."""
    run, nvml = run_on_gpus("nvml", tmp_path, [10.0], visible="1,0")
    (window,) = run.windows
    assert window.energy.total_j == pytest.approx(window.true_j, rel=0.01)
    other, used = nvml.gpus
    assert used.counter_reads_between(window.energy.start_s, window.energy.end_s) == 0
    assert used.counter_reads_between(window.asked_s, window.returned_s) > 0
    assert other.counter_reads_between(window.asked_s, window.returned_s) == 0


@needs_gcc
@pytest.mark.parametrize(
    "visible", [pytest.param("GPU-00000001-5c21-4e60-9d3a-0123456789ab", id="uuid"), pytest.param("1", id="index")]
)
def test_zeus_measures_the_right_board_however_it_was_made_visible(visible: str, tmp_path: Path) -> None:
    require("zeus")
    run, _nvml = run_on_gpus("zeus", tmp_path, [2.0], visible=visible)
    (window,) = run.windows
    assert run.name == "zeus"
    assert window.energy.total_j is not None
    assert window.least_j <= window.energy.total_j <= window.most_j  # the other board draws twice as much


@needs_gcc
def test_zeus_measures_beside_a_lost_board(tmp_path: Path) -> None:
    """What it calls 0 then is NVML's 1."""
    require("zeus")
    (window,) = run_on_gpus("zeus", tmp_path, [1.0], lost=True)[0].windows
    assert window.energy.total_j is not None
    assert window.least_j <= window.energy.total_j <= window.most_j


@needs_gcc
def test_auto_prefers_zeus(tmp_path: Path) -> None:
    require("zeus")
    assert run_on_gpus("auto", tmp_path, [0.5])[0].name == "zeus"


def test_codecarbon_estimates_a_run_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    """Nothing is written, printed or looked up, whatever CodeCarbon was set to elsewhere; the label says a model."""
    require("codecarbon")
    out, work = tmp_path / "seen.pickle", tmp_path / "work"
    work.mkdir()
    command = [sys.executable, str(CHILD), str(out), "codecarbon", CPU_DEVICE, "1.0", "2.0"]
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        told = {"ELECTRICITYMAPS_API_TOKEN": "token", "CLOUD_PROVIDER": "aws", "CLOUD_REGION": "us-east-1"}
        told |= {"EMISSIONS_ENDPOINT": address, "OUTPUT_METHODS": "csv,logger", "SAVE_TO_FILE": "true", "PUE": "3"}
        environment = {f"CODECARBON_{name}": value for name, value in told.items()} | {"HTTPS_PROXY": address}
        done = subprocess.run(
            command, cwd=work, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=120
        )
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            proxy.accept()
    assert (done.stdout, done.stderr) == ("", "")
    assert list(work.iterdir()) == []
    seen = pickle.loads(out.read_bytes())
    assert seen["threads_left"] <= 0  # one of the selection's own may have ended since
    first, second = (window[3] for window in seen["windows"])
    for energy in (first, second):
        assert (energy.method, energy.scope) == ("model_estimate", "machine_model")
        assert energy.total_j == pytest.approx((energy.cpu_j or 0.0) + (energy.dram_j or 0.0))
        assert (energy.counter_j, energy.meter_version) == (None, metadata.version("codecarbon"))
        assert [note.code for note in energy.notes] == [WarningCode.ENERGY_IS_ESTIMATED]
    assert second.dram_j > first.dram_j  # the processor's part follows its load, and others load it too
