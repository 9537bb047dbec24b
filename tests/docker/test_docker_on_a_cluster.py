"""Experiments in containers of a real daemon, on a node of a real Ray cluster whose settings say so."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import local_cluster
from tests.cluster.local import LocalCluster, wait_for
from tests.docker.daemon import Daemon

from llem_process import PROMPTS, QUICK
from llenergymeasure.results.persistence import load_study

pytestmark = [pytest.mark.docker, pytest.mark.ray, pytest.mark.timeout(300)]

STUDY = f"{QUICK}execution: {{n_cycles: 1}}\noutput_dir: results\n"


@pytest.fixture
def cluster(daemon: Daemon, torch_image: str, tmp_path: Path) -> Iterator[LocalCluster]:
    """One node, which runs pytorch experiments in containers; the driver knows nothing of that."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray")
    settings = tmp_path / "of-the-node" / "llenergymeasure" / "config.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"runners: {{pytorch: 'docker:{torch_image}'}}\n")
    with local_cluster() as made:
        made.add("n1", XDG_CONFIG_HOME=str(settings.parents[1]), DOCKER_HOST=daemon.address)
        yield made


def test_a_node_runs_experiments_in_containers_and_leaves_none_when_it_is_lost(
    cluster: LocalCluster, daemon: Daemon, torch_image: str, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    (tmp_path / "s.yaml").write_text(f"{STUDY}experiments: [{{random_seed: 1}}]\n")
    process = cluster.llem("run", "s.yaml", "--cluster", cluster.address, cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    (directory,) = (tmp_path / "results").iterdir()
    (result,) = load_study(directory).results()
    assert (result.node, result.runner) == ("n1", f"docker:{torch_image}")
    assert result.image_digest == daemon("image", "inspect", "--format", "{{.Id}}", torch_image).strip()

    endless = "measurement: {min_duration_seconds: 300}\nexperiments: [{random_seed: 2}]\n"
    (tmp_path / "s.yaml").write_text(STUDY + endless)
    process = cluster.llem("run", "s.yaml", "--cluster", cluster.address, cwd=tmp_path)
    wait_for(lambda: daemon.containers() != [], "a container")
    cluster.kill("n1")
    wait_for(lambda: daemon.containers() == [], "the end of the container of a node that is lost")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
