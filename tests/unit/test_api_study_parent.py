from __future__ import annotations

from pathlib import Path

import pytest

from llenergymeasure._api import study_parent
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.exceptions import ConfigError


def study(*directories: str | None) -> StudyConfig:
    experiments = [ExperimentConfig(model="m", n=n, output_dir=place) for n, place in enumerate(directories, start=1)]
    return StudyConfig(experiments=experiments)


def test_a_study_goes_where_its_experiments_say_else_where_the_machine_does() -> None:
    assert study_parent(study("here", "here"), UserConfig()) == Path("here")
    assert study_parent(study(None, None), UserConfig()) == Path("./results")


def test_a_study_cannot_be_kept_in_two_places() -> None:
    with pytest.raises(ConfigError, match="here, there"):
        study_parent(study("here", "there"), UserConfig())
