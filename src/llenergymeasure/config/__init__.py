"""Experiment, study and user configuration.

Names are looked up when they are first used: importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llenergymeasure.config.loader import deep_merge, load_experiment_config, load_study_config
    from llenergymeasure.config.models import (
        BaselineConfig,
        DecoderConfig,
        ExecutionConfig,
        ExperimentConfig,
        LoRAConfig,
        StudyConfig,
        SyntheticDatasetConfig,
        WarmupConfig,
    )
    from llenergymeasure.config.user_config import UserConfig, get_user_config_path, load_user_config

__all__ = [
    "BaselineConfig",
    "DecoderConfig",
    "ExecutionConfig",
    "ExperimentConfig",
    "LoRAConfig",
    "StudyConfig",
    "SyntheticDatasetConfig",
    "UserConfig",
    "WarmupConfig",
    "deep_merge",
    "get_user_config_path",
    "load_experiment_config",
    "load_study_config",
    "load_user_config",
]

_LOADER = ("deep_merge", "load_experiment_config", "load_study_config")
_USER_CONFIG = ("UserConfig", "get_user_config_path", "load_user_config")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "loader" if name in _LOADER else "user_config" if name in _USER_CONFIG else "models"
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
