"""The examples run, each with less to do, on the CPU; the notebook's cells over a study that was really measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from example_runs import EXAMPLES, shortened
from llenergymeasure import ExperimentConfig, run_experiment
from llenergymeasure.config.loader import load_study_config

pytest.importorskip("transformers", reason="needs the pytorch extra")

NOTEBOOK = json.loads((EXAMPLES / "plots.ipynb").read_text())
SHORT = {"synthetic": {"n": 3, "input_len": 24, "output_len": 4}}
CHANGES: dict[str, dict[str, Any]] = {
    "minimal.yaml": {},
    "publication.yaml": {"revision": None},
    "quickstart.yaml": {},
    "sampling.yaml": {},
    "synthetic.yaml": {"dataset": SHORT, "max_input_tokens": 24},
}
"""Experiments that any machine can run, and what has to change beside what `shortened` changes."""

CODE = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
TELL = """
import json
seen = [plt.figure(number).axes[0] for number in plt.get_fignums()]
print(json.dumps({
    "rows": len(runs),
    "drawn": [len(axes.lines) + len(axes.containers) for axes in seen],
    "labels": [[axes.get_xlabel(), axes.get_ylabel()] for axes in seen],
    "pareto": [list(map(float, data)) for data in seen[1].lines[0].get_data()],
}))
"""


@pytest.mark.parametrize("name", CHANGES)
def test_an_experiment_runs(name: str) -> None:
    result = run_experiment(ExperimentConfig.model_validate(shortened(name, **CHANGES[name])))
    assert (result.num_requests, result.output_tokens) == (3, 12)


def test_the_adapter_of_the_lora_example_is_used(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from pytorch_models import save_adapter, save_model

    base = save_model(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    document = shortened("lora.yaml", model=str(base), lora={"adapter_path": str(adapter)})
    result = run_experiment(ExperimentConfig.model_validate(document))
    assert result.output_tokens == 12
    assert result.effective_config["lora"]["adapter_path"] == str(adapter)


def test_a_context_of_the_long_context_example_is_as_long_as_it_says(tmp_path: Path) -> None:
    contexts = [config.max_input_tokens for config in load_study_config(EXAMPLES / "long-context.yaml").experiments]
    assert contexts == [1_000, 4_000, 16_000, 32_000]
    shorter = shortened("long-context.yaml", experiments=[{"dataset": SHORT}])
    fields = {key: value for key, value in shorter.items() if key not in ("name", "execution", "experiments")}
    result = run_experiment(ExperimentConfig.model_validate({**fields, "dataset": SHORT, "max_input_tokens": 24}))
    assert result.input_tokens == 3 * 24


def test_the_copies_of_the_two_gpus_example_share_the_prompts_out() -> None:
    _, copies, spread = load_study_config(EXAMPLES / "two-gpus.yaml").experiments
    assert copies.backend_config.processes == 2
    assert spread.pytorch is not None
    assert spread.pytorch.device_map == "balanced"
    document = shortened("two-gpus.yaml", n=4, pytorch={"device": "cpu", "num_processes": 2, "batch_size": 2})
    fields = {key: value for key, value in document.items() if key not in ("name", "execution", "experiments")}
    result = run_experiment(ExperimentConfig.model_validate(fields))
    assert (result.num_requests, result.aggregation and result.aggregation.num_processes) == (4, 2)


def test_the_notebook_is_stripped_and_whole() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    cells = NOTEBOOK["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)


def test_the_cells_of_the_notebook_draw_what_was_measured(small_study: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / small_study.name).symlink_to(small_study)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", CODE + TELL],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["rows"] == 4
    assert len(seen["drawn"]) == 3
    assert all(seen["drawn"])
    assert all(all(labels) for labels in seen["labels"])
    speeds, energies = seen["pareto"]
    assert (len(speeds), len(energies)) == (2, 2)
    assert min(speeds) > 0
