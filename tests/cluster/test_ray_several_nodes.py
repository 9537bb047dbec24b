"""An engine over two nodes of a real Ray cluster; boards, their driver and the engine are played."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from tests.cluster.conftest import HERE, local_cluster
from tests.cluster.local import LocalCluster, StudyFiles, wait_for
from tests.nvml.scripted import ScriptedGpu, ScriptedNvml, have_compiler
from tests.nvml.waveform import Waveform

from energy_fakes import farthest_j
from llenergymeasure.core.energy.gpu_energy import read_trace, recompute_energy
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.results.persistence import load_study

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

NODES = ("n1", "n2")


@dataclass
class TwoNodes:
    """A cluster whose nodes have a scripted board each."""

    cluster: LocalCluster
    boards: dict[str, ScriptedGpu]

    @property
    def uuids(self) -> list[str]:
        return [board.uuid for board in self.boards.values()]


def swinging(seed: int) -> Waveform:
    """A load of its own on every board, for minutes."""
    draw = random.Random(seed)
    return Waveform(tuple((0.5 * n, draw.uniform(150.0, 450.0)) for n in range(1200)))


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    if importlib.util.find_spec("ray") is None or not have_compiler():
        pytest.skip("needs Ray, and gcc for the scripted NVML")
    with local_cluster((HERE / "vllm_standin",)) as cluster:
        boards = {
            name: ScriptedGpu.of("a100", uuid=f"GPU-{name}", waveform=swinging(i)) for i, name in enumerate(NODES)
        }
        for name, board in boards.items():
            hides = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"} if name == "n2" else {}  # as older releases of Ray do
            cluster.add(name, **ScriptedNvml([board], cluster.directory).environment(), **hides)
        yield TwoNodes(cluster, boards)


def write(study: StudyFiles, two: TwoNodes, *, gpus: int = 2, hold: bool = False) -> Path:
    told = {"marks": str(study.marks_dir), "boards": two.uuids, **({"hold": str(study.hold)} if hold else {})}
    return study.write(
        [],
        backend="vllm",
        vllm={"tensor_parallel_size": gpus, "distributed_executor_backend": "ray"},
        energy={"backend": "nvml"},
        baseline={"duration_seconds": 5},
        experiments=[{"random_seed": 1, "passthrough_kwargs": told}],
    )


def run(two: TwoNodes, file: Path, code: int = 0) -> tuple[str, str]:
    process = two.cluster.llem("run", str(file), "--cluster", two.cluster.address, "--cycles", "1", cwd=file.parent)
    out, err = process.communicate()
    assert process.returncode == code, err
    return out, err


def only_result(study: StudyFiles) -> tuple[ExperimentResult, Path]:
    (result,) = load_study(study.study_dir).results()
    (trace,) = study.study_dir.rglob("trace*.parquet")
    return result, trace


def test_the_boards_of_both_nodes_are_summed_within_the_stated_interval(two_nodes: TwoNodes, study: StudyFiles) -> None:
    out, _ = run(two_nodes, write(study, two_nodes))
    assert "1 completed, 0 failed" in out
    result, trace = only_result(study)
    window, _ = read_trace(trace)
    assert result.node == "n1+n2"
    assert result.multi_gpu is not None
    assert result.uncertainty is not None
    true_j = {name: board.energy_between_j(window.start_s, window.end_s) for name, board in two_nodes.boards.items()}
    assert result.total_energy_j == pytest.approx(
        sum(true_j.values()), abs=farthest_j(result.uncertainty.comparative_j)
    )
    assert sum(result.multi_gpu.energy_per_gpu_j) == pytest.approx(result.total_energy_j)
    per_device_j = {
        device: farthest_j(each.comparative_j) for device, each in (result.uncertainty_per_device or {}).items()
    }
    for (name, board), energy_j in zip(two_nodes.boards.items(), result.multi_gpu.energy_per_gpu_j, strict=True):
        assert energy_j == pytest.approx(true_j[name], abs=per_device_j[board.uuid])
    assert recompute_energy(trace).total_j == result.total_energy_j

    assert result.measurement_boundary is not None
    ((device, place),) = result.measurement_boundary.elsewhere.items()
    assert (device, place.node) == ("GPU-n2", "n2")
    assert abs(place.offset_s) <= place.half_width_s  # one machine has one clock
    assert "clock offset" in {part.name for part in result.uncertainty.budget}
    assert result.baseline_power_w is not None
    assert isinstance(result.start_time, datetime)


def test_a_node_lost_in_the_window_costs_the_run_and_leaves_no_part_of_a_sum(
    two_nodes: TwoNodes, study: StudyFiles
) -> None:
    study.hold.touch()
    file = write(study, two_nodes, hold=True)
    cluster = two_nodes.cluster
    process = cluster.llem("run", str(file), "--cluster", cluster.address, "--cycles", "1", cwd=file.parent)
    wait_for(lambda: len(study.marks()) > 0, "a window that is open, or about to")
    job = study.marks()[0].pid
    cluster.kill("n2")
    wait_for(lambda: not psutil.pid_exists(job), "the end of the job")
    study.hold.unlink()
    cluster.add("n2", **ScriptedNvml([two_nodes.boards["n2"]], cluster.directory).environment())
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "1 completed, 0 failed" in out
    assert "n1+n2 is lost: of n1+n2, n2 is lost" in err
    assert "is tried once more" in err
    result, trace = only_result(study)
    assert len({mark.pid for mark in study.marks()}) == 2
    assert recompute_energy(trace).total_j == result.total_energy_j


def test_more_gpus_than_all_nodes_have_are_refused(two_nodes: TwoNodes, study: StudyFiles) -> None:
    _, err = run(two_nodes, write(study, two_nodes, gpus=3), code=1)
    there = "n1: 1 × NVIDIA Scripted GPU; n2: 1 × NVIDIA Scripted GPU"
    assert f"asks for 3 GPUs on nodes of one kind, and the cluster has {there}" in err
