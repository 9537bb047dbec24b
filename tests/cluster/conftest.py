"""A Ray cluster of this machine: a head that directs, nodes with a GPU each in Ray's books, and an engine on each."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cluster.local import LocalCluster, StudyFiles

HERE = Path(__file__).parent
REPO = HERE.parents[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray")
    with local_cluster() as made:
        for name in ("n1", "n2", "n3"):
            made.add(name)
        yield made


@contextmanager
def local_cluster(further_paths: Sequence[Path] = ()) -> Iterator[LocalCluster]:
    """A head; nodes are added by whoever asked.

    Args:
        further_paths: Where Python looks for packages on all nodes, first of all.
    """
    directory = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: sockets lie below it
    site = directory / "site"
    (site / "stand_in-1.0.dist-info").mkdir(parents=True)
    shutil.copy(HERE / "stand_in_engine.py", site)
    info = site / "stand_in-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stand_in\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llenergymeasure.backends]\nstand_in = stand_in_engine\n")
    paths = [*further_paths, HERE / "without_rocm", site, REPO / "src", REPO / "tests", REPO]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "1000",
        "XDG_CONFIG_HOME": str(directory / "config"),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(directory),
    }
    before = dict(os.environ)
    on_sigterm = signal.getsignal(signal.SIGTERM)  # a head in this process puts its own there for good
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(HERE / "without_rocm"), *sys.path])
        for name, value in environment.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        quiet = {"include_dashboard": False, "num_cpus": 0, "node_name": "head"}
        ray = Cluster(initialize_head=True, head_node_args=quiet)
        made = LocalCluster(directory, {**before, **environment}, ray)
        try:
            yield made
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, on_sigterm)
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def study(tmp_path: Path) -> StudyFiles:
    return StudyFiles(tmp_path)
