"""Every file in examples/ is what its first line says: it loads, expands as described, and holds no machine facts."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llenergymeasure.config.errors import is_study_document
from llenergymeasure.config.loader import load_experiment_config, load_study_config
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.same_work import ineffective_settings, partial_batch
from llenergymeasure.config.user_config import UserConfig, load_user_config
from llenergymeasure.core.host.docker import default_image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
USER_FILES = {"user-config.yaml"}
FILES = sorted(path for path in EXAMPLES.glob("*.yaml") if path.name not in USER_FILES)
STUDIES = {
    "long-context.yaml": (4, 3),
    "study-cluster.yaml": (9, 5),
    "study-grid.yaml": (6, 4),
    "study-list.yaml": (4, 3),
    "study-several-backends.yaml": (12, 3),
    "sweep-batch-size.yaml": (6, 3),
    "sweep-precision.yaml": (5, 3),
    "two-gpus.yaml": (3, 3),
}
"""Study → its configurations and cycles."""


def documents() -> dict[str, dict[str, Any]]:
    return {path.name: yaml.safe_load(path.read_text()) for path in FILES}


EXPERIMENTS = [name for name, document in documents().items() if not is_study_document(document)]


def test_every_file_is_tested_as_what_it_is() -> None:
    assert {name for name, document in documents().items() if is_study_document(document)} == set(STUDIES)
    assert len(EXPERIMENTS) >= 8


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_loads_and_everything_in_it_acts(name: str) -> None:
    config = load_experiment_config(EXAMPLES / name)
    assert ineffective_settings(config) == []


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_as_many_configurations_as_its_grid_and_skips_none(name: str) -> None:
    study = load_study_config(EXAMPLES / name)
    assert (len(study.experiments), study.execution.n_cycles) == STUDIES[name]
    assert study.skipped_configs == []
    assert study.name is not None


def test_each_engine_of_a_study_has_its_own_grid() -> None:
    study = load_study_config(EXAMPLES / "study-several-backends.yaml")
    assert [config.backend for config in study.experiments].count("pytorch") == 2 * 2
    assert [config.backend for config in study.experiments].count("vllm") == 2 * 2 * 2


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "study-several-backends.yaml"])
def test_every_setting_of_every_configuration_acts(name: str) -> None:
    for config in load_study_config(EXAMPLES / name).experiments:
        assert ineffective_settings(config) == []


def test_the_images_that_an_example_names_are_those_of_this_release() -> None:
    text = (EXAMPLES / "study-several-backends.yaml").read_text()
    assert [f"docker:{default_image(name)}" in text for name in ("pytorch", "vllm")] == [True, True]


def test_a_batch_size_sweep_leaves_no_batch_part_full() -> None:
    study = load_study_config(EXAMPLES / "sweep-batch-size.yaml")
    assert [partial_batch(config) for config in study.experiments] == [None] * 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_fact_about_a_machine(path: Path) -> None:
    document = documents()[path.name]
    assert "output_dir" not in document
    assert not set(document) & (set(UserConfig.model_fields) - set(ExperimentConfig.model_fields) - {"execution"})
    assert not {"config_gap_seconds", "cycle_gap_seconds"} & set(document.get("execution", {}))


def test_the_user_configuration_loads() -> None:
    config = load_user_config(EXAMPLES / "user-config.yaml", environ={})
    assert config.measurement.carbon_intensity_gco2_kwh == 385


def test_the_files_for_clusters_can_be_read_by_what_reads_them() -> None:
    places = EXAMPLES / "clusters"
    subprocess.run(["bash", "-n", places / "study.sbatch"], check=True)
    kuberay = yaml.safe_load((places / "kuberay.yaml").read_text())
    workers = kuberay["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert kuberay["kind"] == "RayCluster"
    assert workers["resources"]["limits"]["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize("path", sorted(filter(Path.is_file, EXAMPLES.iterdir())), ids=lambda path: path.name)
def test_every_file_is_short_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    assert len(text.splitlines()) <= 60
    assert text.startswith("# ") if path.suffix != ".py" else ast.get_docstring(ast.parse(text))


def test_the_list_of_examples_is_complete() -> None:
    listed = re.findall(r"^\| `([^`]+)` \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(
        path.name + "/" * path.is_dir() for path in EXAMPLES.iterdir() if path.name != "README.md"
    )


def test_presets_and_seeds_are_what_the_comments_say() -> None:
    sampling = load_experiment_config(EXAMPLES / "sampling.yaml").decoder
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty, sampling.top_k) == (0.8, 0.9, 1.1, 0)
    synthetic = load_experiment_config(EXAMPLES / "synthetic.yaml")
    assert (synthetic.n, synthetic.max_input_tokens, synthetic.max_output_tokens) == (64, 1024, 256)
