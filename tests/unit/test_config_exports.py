"""`llenergymeasure.config` exports what it promises and costs nothing until a name is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llenergymeasure.config as config

_PROMISED = {
    "ExperimentConfig",
    "DecoderConfig",
    "WarmupConfig",
    "BaselineConfig",
    "SyntheticDatasetConfig",
    "LoRAConfig",
    "load_experiment_config",
    "deep_merge",
    "UserConfig",
    "load_user_config",
    "get_user_config_path",
    "StudyConfig",
    "ExecutionConfig",
    "load_study_config",
}


def test_exports_are_exactly_those_promised_and_all_resolve() -> None:
    assert set(config.__all__) == _PROMISED
    assert set(dir(config)) >= _PROMISED
    for name in _PROMISED:
        assert getattr(config, name).__name__ == name


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="PyTorchConfig"):
        _ = config.PyTorchConfig  # type: ignore[attr-defined]


def test_importing_the_package_loads_neither_pydantic_nor_yaml() -> None:
    code = "import sys, llenergymeasure.config; print(sorted({'pydantic', 'yaml', 'platformdirs'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
