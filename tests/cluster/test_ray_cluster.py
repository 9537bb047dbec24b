"""Studies on a real Ray cluster of this machine: what is played is the engine, and that nodes have a GPU."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.cluster.local import LocalCluster, StudyFiles, wait_for

import llenergymeasure
from llenergymeasure.constants import VERSION
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.warnings import codes_of
from llenergymeasure.results.persistence import REPORT_FILE, load_study
from llenergymeasure.results.report.write import page_of
from llenergymeasure.runners.ray_node import NEWS_S
from llenergymeasure.study.manifest import load_manifest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

TESTS = Path(__file__).parents[1]

OF_TIME_AND_PLACE = {
    *("experiment_id", "node", "output_dir", "process_id", "pid"),
    *("timestamps", "started_at", "ended_at", "start_time", "end_time"),
}
OF_A_BUSY_MACHINE = {"generation_stalled", "other_measurement"}


def finished(cluster: LocalCluster, *arguments: str, cwd: Path, code: int = 0) -> tuple[str, str]:
    process = cluster.llem(*arguments, cwd=cwd)
    out, err = process.communicate()
    assert process.returncode == code, err
    return out, err


def without_time_and_place(result: ExperimentResult) -> Any:
    """What two runs of one experiment must agree in: everything but when, where, and what follows from its speed."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: sorted({*codes_of(each)} - OF_A_BUSY_MACHINE) if name.endswith("warnings") else kept(each)
                for name, each in value.items()
                if name not in OF_TIME_AND_PLACE and not name.endswith(("_ms", "_s"))
            }
        if isinstance(value, list):
            return [kept(each) for each in value]
        return type(value).__name__ if isinstance(value, float) else value

    return kept(result.model_dump(mode="json"))


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_twelve_runs_use_every_node_and_equal_those_of_one_machine(
    cluster: LocalCluster, study: StudyFiles, tmp_path: Path
) -> None:
    file = study.write([1, 2, 3, 4, 5, 6], cycles=2, gap_s=0.5)
    preview, _ = finished(cluster, "run", str(file), "--dry-run", "--cluster", cluster.address, cwd=tmp_path)
    assert "Cluster        experiments on 3 nodes: 3 × 1 × GPU of unknown name" in preview
    out, err = finished(cluster, "run", str(file), "--cluster", cluster.address, cwd=tmp_path)
    spread = load_study(study.study_dir).results()
    assert "12 completed, 0 failed" in out
    assert err.count("✓") == 12
    nodes = Counter(result.node for result in spread)
    assert (set(nodes), nodes.total()) == ({"n1", "n2", "n3"}, 12)
    assert {mark.node for mark in study.marks()} == set(nodes)
    for path in map(study.study_dir.joinpath, load_study(study.study_dir).result_files):
        assert (path.parent / REPORT_FILE).read_text() == page_of(path.parent)  # drawn on the node
    assert study.threads() == {os.environ.get("OMP_NUM_THREADS", "unset")}  # not what Ray gives its workers

    here = tmp_path / "here"
    finished(cluster, "run", str(file), "--output", str(here), "--cycles", "1", cwd=tmp_path)
    (directory,) = here.iterdir()
    alone = {(one.measurement_config_hash, one.cycle): one for one in load_study(directory).results()}
    for result in [one for one in spread if one.cycle == 1]:
        same = alone.pop((result.measurement_config_hash, result.cycle))
        assert without_time_and_place(result) == without_time_and_place(same)
    assert not alone


def test_a_node_that_is_killed_costs_one_run_which_succeeds_elsewhere(
    cluster: LocalCluster, study: StudyFiles, tmp_path: Path
) -> None:
    study.hold.touch()
    file = study.write([1, 2, 3, 4], holds=(1, 2, 3))
    process = cluster.llem("run", str(file), "--cluster", cluster.address, "--cycles", "1", cwd=tmp_path)
    wait_for(lambda: len({mark.node for mark in study.marks()}) == 3, "a run on every node")
    (victim,) = [mark for mark in study.marks() if mark.node == "n2"]
    time.sleep(2 * NEWS_S)  # until what it has printed is known
    cluster.kill("n2")
    wait_for(lambda: not is_running(victim.pid), "the end of the job on the node that was lost")
    study.hold.unlink()
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "4 completed, 0 failed" in out
    assert "n2 is lost:" in err
    assert "(last output: generating on n2) m / stand_in" in err
    assert "is tried once more" in err
    (log,) = study.study_dir.glob("*_failed/child.log")
    assert log.read_text().endswith("generating on n2\n")
    tries = Counter(mark.seed for mark in {(mark.seed, mark.pid): mark for mark in study.marks()}.values())
    assert tries == {1: 1, 2: 1, 3: 1, 4: 1} | {victim.seed: 2}
    (again,) = [
        one for one in load_study(study.study_dir).results() if one.effective_config["random_seed"] == victim.seed
    ]
    assert again.node in {"n1", "n3"}
    cluster.add("n2")


def test_a_driver_that_is_killed_leaves_no_job_and_its_resumption_loses_nothing(
    cluster: LocalCluster, study: StudyFiles, tmp_path: Path
) -> None:
    file = study.write([1, 2, 3, 4, 5, 6], holds=(4, 5, 6))
    study.hold.touch()
    process = cluster.llem("run", str(file), "--cluster", cluster.address, "--cycles", "1", cwd=tmp_path)
    wait_for(lambda: {mark.seed for mark in study.marks()} == {1, 2, 3, 4, 5, 6}, "all runs under way")
    wait_for(lambda: load_manifest(study.study_dir).completed == 3, "three results")
    process.kill()
    process.communicate()
    orphans = {mark.pid for mark in study.marks()}
    wait_for(lambda: not any(map(is_running, orphans)), "the end of the jobs of a driver that is gone")
    study.hold.unlink()
    out, _ = finished(cluster, "run", "--resume", str(study.study_dir), "--cluster", cluster.address, cwd=tmp_path)
    assert "6 completed, 0 failed" in out
    runs = Counter(mark.seed for mark in {(mark.seed, mark.pid): mark for mark in study.marks()}.values())
    assert runs == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}


def test_ctrl_c_ends_every_run_and_says_how_to_go_on(cluster: LocalCluster, study: StudyFiles, tmp_path: Path) -> None:
    before = cluster.left_on_nodes()
    study.hold.touch()
    file = study.write([1, 2, 3], holds=(1, 2, 3))
    process = cluster.llem("run", str(file), "--cluster", cluster.address, "--cycles", "1", cwd=tmp_path)
    wait_for(lambda: len({mark.node for mark in study.marks()}) == 3, "a run on every node")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert f"llem run --resume {study.study_dir}" in err
    assert not any(is_running(mark.pid) for mark in study.marks())
    assert cluster.left_on_nodes() == before
    assert load_manifest(study.study_dir).status == "interrupted"


def test_nodes_with_another_release_or_none_say_so_and_a_result_that_cannot_be_saved_leaves_nothing_on_its_node(
    cluster: LocalCluster, study: StudyFiles, tmp_path: Path
) -> None:
    old = tmp_path / "old-release"
    package = Path(llenergymeasure.__file__).parent
    shutil.copytree(package, old / package.name, ignore=shutil.ignore_patterns("__pycache__", "builtin"))
    constants = old / package.name / "constants.py"
    constants.write_text(constants.read_text().replace(f'VERSION: Final = "{VERSION}"', 'VERSION: Final = "1.9.0"'))
    cluster.add("old", PYTHONPATH=f"{old}{os.pathsep}{cluster.environment['PYTHONPATH']}")
    hidden = f"{TESTS / 'without_packages'}{os.pathsep}{cluster.environment['PYTHONPATH']}"
    cluster.add("bare", PYTHONPATH=hidden, HIDDEN_PACKAGES="llenergymeasure")
    try:
        before = cluster.left_on_nodes()
        study.hold.touch()
        file = study.write([1], holds=(1,))
        process = cluster.llem("run", str(file), "--cluster", cluster.address, "--cycles", "1", cwd=tmp_path)
        wait_for(lambda: len(study.marks()) == 1, "the run")
        assert cluster.left_on_nodes() != before
        study.study_dir.rename(tmp_path / "elsewhere")
        study.hold.unlink()
        _, err = process.communicate()
        assert process.returncode == 1, err
        assert f"bare takes no experiments: llenergymeasure {VERSION} does not answer there" in err
        assert f"old takes no experiments: it has llenergymeasure 1.9.0, and this is {VERSION}." in err
        assert "it has been removed or replaced while the study was running" in err
        assert cluster.left_on_nodes() == before
    finally:
        cluster.kill("old")
        cluster.kill("bare")


def test_what_no_node_has_is_refused_and_a_worker_that_dies_is_not_the_experiments_fault(
    cluster: LocalCluster, study: StudyFiles, tmp_path: Path
) -> None:
    file = study.write([1], backend="vllm", vllm={"tensor_parallel_size": 2}, passthrough_kwargs=None)
    _, err = finished(cluster, "run", str(file), "--cluster", cluster.address, cwd=tmp_path, code=1)
    assert "asks for 2 GPUs on one node, and the cluster has " in err
    assert "n1: 1 × GPU of unknown name; n2: 1 × GPU" in err
    _, err = finished(cluster, "run", str(file), "--cluster", "127.0.0.1:1", cwd=tmp_path, code=1)
    assert "--cluster 127.0.0.1:1: cannot connect" in err

    study.hold.touch()
    file = study.write([1, 2, 3], holds=(1,))
    process = cluster.llem("run", str(file), "--cluster", cluster.address, "--cycles", "1", cwd=tmp_path)
    wait_for(lambda: any(mark.seed == 1 for mark in study.marks()), "the run that waits")
    (job,) = [mark for mark in study.marks() if mark.seed == 1]
    agent = next(
        each for each in psutil.Process(job.pid).parents() if "NodeAgent" in each.name() + "".join(each.cmdline())
    )
    os.kill(agent.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(job.pid), "the end of the job of an agent that is gone")
    study.hold.unlink()
    out, err = process.communicate()
    assert "3 completed, 0 failed" in out, err
    assert f"{job.node} is lost: " in err
