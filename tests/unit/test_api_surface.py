"""What `import llenergymeasure` promises: names, price, and errors that help."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import llenergymeasure
from llenergymeasure import ExperimentConfig, StudyConfig
from llenergymeasure._api import resolve_experiment, study_parent
from llenergymeasure.config.loader import load_study_config
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.exceptions import ConfigError
from result_samples import make_result

ENGINES = ("codecarbon", "datasets", "numpy", "pandas", "pyarrow", "scipy", "torch", "transformers", "vllm", "zeus")
HEAVY = (*ENGINES, "pydantic", "tqdm", "typer", "yaml")


def loaded_by(statement: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


def test_the_public_names_are_the_documented_ones() -> None:
    assert set(llenergymeasure.__all__) == {
        "run_experiment",
        "run_study",
        "ExperimentConfig",
        "StudyConfig",
        "ExperimentResult",
        "StudyResult",
        "__version__",
    }
    assert all(hasattr(llenergymeasure, name) for name in llenergymeasure.__all__)
    assert set(llenergymeasure.__all__) <= set(dir(llenergymeasure))


def test_the_version_is_that_of_the_package() -> None:
    assert llenergymeasure.__version__ == "2.0.0"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'run_batch'"):
        llenergymeasure.run_batch  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "from llenergymeasure.core.backends.registry import detect_default_backend; detect_default_backend()",
        "from llenergymeasure.builtin_models import packaged_files; packaged_files('builtin/tiny-llama')",
        "from llenergymeasure.datasets.loader import load_raw_prompts; load_raw_prompts('aienergyscore', 1)",
        "from llenergymeasure.results import aggregation, persistence, statistics",
        "from llenergymeasure.cli.dry_run import *; from llenergymeasure.config.user_config import UserConfig; "
        "case = ExperimentConfig(model='x/y', dataset={'synthetic': {'n': 1}}); "
        "render_dry_run(dry_run_experiment(case, UserConfig()))",
    ],
    ids=["backends", "model", "prompts", "results", "dry run"],
)
def test_what_needs_no_engine_loads_none(statement: str) -> None:
    assert not set(loaded_by(statement)) & set(ENGINES)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import llenergymeasure") == []


def test_asking_for_the_version_loads_nothing_heavy() -> None:
    assert loaded_by("import sys; sys.argv = ['llem', '--version']; import llenergymeasure.cli as c; c.main()") == []


def test_help_needs_typer_alone() -> None:
    run = "from llenergymeasure.cli.app import run_app; run_app(['run', '--help'])"
    assert set(loaded_by(run)) <= {"typer", "pydantic"}  # which recent releases of Typer bring


def test_reading_a_config_needs_no_engine() -> None:
    run = "import llenergymeasure as l; l.run_experiment; l.ExperimentConfig(model='gpt2'); l.ExperimentResult"
    assert set(loaded_by(run)) <= {"pydantic", "yaml"}


def test_each_function_returns_exactly_one_type() -> None:
    returned = {
        name: typing.get_type_hints(getattr(llenergymeasure, name))["return"].__name__
        for name in ("run_experiment", "run_study")
    }
    assert returned == {"run_experiment": "ExperimentResult", "run_study": "StudyResult"}


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(llenergymeasure.__file__).with_name("py.typed").is_file()


def test_nothing_to_run_is_an_error_with_the_shortest_call_that_works() -> None:
    with pytest.raises(ConfigError, match=r'run_experiment\(model="gpt2"\)'):
        llenergymeasure.run_experiment()  # type: ignore[call-overload]


def test_a_wrong_value_is_pydantics_own_error() -> None:
    with pytest.raises(ValidationError) as caught:
        llenergymeasure.run_experiment(model="gpt2", n=0)
    assert caught.value.title == "ExperimentConfig"
    assert [error["loc"] for error in caught.value.errors()] == [("n",)]


def test_a_wrong_value_in_a_file_is_pydantics_own_error(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text("model: gpt2\nprecision: int8\n")
    with pytest.raises(ValidationError):
        llenergymeasure.run_experiment(tmp_path / "q.yaml")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompts": 3}, "unknown field 'prompts'"),
        ({"precison": "fp16"}, "Did you mean 'precision'"),
        ({"pytorch.batchsize": 4}, "Did you mean 'pytorch.batch_size'"),
    ],
)
def test_an_unknown_keyword_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        llenergymeasure.run_experiment(model="gpt2", **fields)  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: no such file"):
        llenergymeasure.run_experiment(str(tmp_path / "nope.yaml"))


def test_a_study_file_is_sent_to_the_function_for_studies(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("model: gpt2\nsweep: {precision: [fp16, bf16]}\n")
    with pytest.raises(ConfigError, match="run_study"):
        llenergymeasure.run_experiment(tmp_path / "study.yaml")


def test_keywords_override_a_file_a_config_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text("model: gpt2\nn: 7\npytorch: {batch_size: 2, device: cpu}\n")
    config = ExperimentConfig.model_validate({"model": "gpt2", "n": 7, "pytorch": {"batch_size": 2, "device": "cpu"}})
    overrides = {"pytorch.batch_size": 8, "decoder": {"top_k": 10}, "output_dir": None}
    for given in (str(tmp_path / "q.yaml"), tmp_path / "q.yaml", config):
        resolved = resolve_experiment(given, dict(overrides))
        assert resolved.pytorch is not None
        assert (resolved.n, resolved.pytorch.batch_size, resolved.pytorch.device) == (7, 8, "cpu")
        assert resolved.decoder.top_k == 10
    assert config.pytorch is not None
    assert config.pytorch.batch_size == 2


def test_a_config_without_overrides_is_used_as_it_is() -> None:
    config = ExperimentConfig(model="gpt2")
    assert resolve_experiment(config, {}) == config


def test_a_studys_place_in_the_home_directory_may_be_written_with_a_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    study = StudyConfig(experiments=[ExperimentConfig(model="gpt2", output_dir="~/results")])
    assert study_parent(study, UserConfig()) == tmp_path / "results"


def test_a_place_that_cannot_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="output_dir"):
        llenergymeasure.run_experiment(model="gpt2", output_dir="results\x00")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model": "gpt2"}, "not dict. Give its fields as keywords: run_experiment(**fields)."),
        (42, "run_experiment takes a file or an ExperimentConfig, not int."),
        ([], "not list."),
        (StudyConfig(experiments=[ExperimentConfig(model="gpt2")]), "A study is run with run_study."),
    ],
)
def test_an_experiment_of_the_wrong_type_is_a_type_error_with_the_way_out(config: Any, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        llenergymeasure.run_experiment(config)
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (42, "run_study takes a file or a StudyConfig, not int."),
        (None, "not NoneType."),
        ({"sweep": {}}, "not dict. Write it to a YAML file, or make a StudyConfig(experiments=[…])."),
        (ExperimentConfig(model="gpt2"), "Run it with run_experiment, or as StudyConfig(experiments=[config])."),
    ],
)
def test_a_study_of_the_wrong_type_is_a_type_error_with_the_way_out(config: Any, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        llenergymeasure.run_study(config)
    assert str(caught.value).endswith(said)


def test_places_may_be_paths_in_the_config_and_as_keywords(tmp_path: Path) -> None:
    places = {"model": tmp_path / "model", "dataset": tmp_path / "prompts.jsonl", "output_dir": tmp_path / "out"}
    texts = {name: str(path) for name, path in places.items()}
    expected = ExperimentConfig(**texts)
    assert ExperimentConfig(**places) == expected
    assert resolve_experiment(None, dict(places)) == expected
    assert resolve_experiment(ExperimentConfig(model="m"), dict(places)) == expected
    assert expected.model_dump(mode="json")["output_dir"] == str(tmp_path / "out")
    assert ExperimentConfig(model="m", lora={"adapter_path": tmp_path}).lora.adapter_path == str(tmp_path)


def test_a_tilde_is_the_home_directory_in_python_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("model: gpt2\nn: 7\n")
    (tmp_path / "study.yaml").write_text("base: ~/base.yaml\nsweep: {precision: [fp16]}\noutput_dir: ~/results\n")
    assert resolve_experiment("~/base.yaml", {}).n == 7
    study = load_study_config("~/study.yaml")
    assert study.experiments[0].n == 7
    assert study_parent(study, UserConfig()) == tmp_path / "results"
    result = make_result()
    assert result.save("~/saved").is_relative_to(tmp_path / "saved")
    result.to_json("~/one.json")
    assert llenergymeasure.ExperimentResult.from_json("~/one.json") == result
