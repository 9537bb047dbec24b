"""What integration tests share: a small study that was really measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from example_runs import shortened
from llem_process import Workplace


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of examples/sweep-batch-size.yaml, run on the CPU: two batch sizes, two cycles."""
    pytest.importorskip("transformers", reason="needs the pytorch extra")
    base = tmp_path_factory.mktemp("small-study")
    workplace = Workplace(base, base / "home")
    document = shortened("sweep-batch-size.yaml", n=4, sweep={"pytorch.batch_size": [1, 4]})
    document["execution"]["n_cycles"] = 2
    workplace.write("study.yaml", yaml.safe_dump(document))
    done = workplace.run("run", "study.yaml", "--output", "results")
    assert done.returncode == 0, done.stderr
    (summary,) = workplace.cwd.glob("results/*/study_summary.json")
    return summary.parent
