"""Every machine setting, every field of `execution:` and every variable, given wrongly; generated from the models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llenergymeasure.config.base import set_dotted
from llenergymeasure.config.errors import describe_validation_error
from llenergymeasure.config.introspection import get_params_from_model
from llenergymeasure.config.loader import load_study_config
from llenergymeasure.config.models import ExecutionConfig
from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.config.user_config import UserConfig, load_user_config
from llenergymeasure.exceptions import ConfigError

MACHINE = get_params_from_model(UserConfig)
STUDY = get_params_from_model(ExecutionConfig, "execution")
VARIABLES = [
    *(f"LLEM_RUNNER_{backend.upper()}" for backend in BACKENDS),
    "LLEM_CARBON_INTENSITY",
    "LLEM_DATACENTER_PUE",
    "LLEM_NO_PROMPT",
]

_WRONG_TYPE = {"int": "seven", "float": "warm", "bool": "perhaps", "str": 7, "list": 7, "Literal": "no-such-option"}
_BEYOND: dict[str, Callable[[float], Any]] = {
    "ge": lambda limit: limit - 1,
    "gt": lambda limit: limit,
    "le": lambda limit: limit + 1,
    "min_length": lambda _: "",
}

every_field = pytest.mark.parametrize(
    ("kind", "path"), [("machine", path) for path in MACHINE] + [("study", path) for path in STUDY]
)
every_limit = pytest.mark.parametrize(
    ("kind", "path", "limit"),
    [
        (kind, path, limit)
        for kind, params in (("machine", MACHINE), ("study", STUDY))
        for path, param in params.items()
        for limit in param["constraints"]
    ],
)


def refusal(directory: Path, kind: str, path: str, value: Any) -> str:
    """What is said of a file that sets one field: of the machine's settings, or of a study."""
    document: dict[str, Any] = {} if kind == "machine" else {"model": "m", "sweep": {"n": [1, 2]}}
    set_dotted(document, path, value)
    file = directory / "file.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    with pytest.raises((ConfigError, ValidationError)) as caught:
        load_user_config(file, environ={}) if kind == "machine" else load_study_config(file)
    error = caught.value
    return "\n".join(describe_validation_error(error)) if isinstance(error, ValidationError) else str(error)


@every_field
def test_a_wrong_type_is_refused_by_name(tmp_path: Path, kind: str, path: str) -> None:
    type_name = (MACHINE if kind == "machine" else STUDY)[path]["type_str"].split("[")[0].split(" ")[0]
    assert f"{path}: must be" in refusal(tmp_path, kind, path, _WRONG_TYPE[type_name])


@every_limit
def test_a_value_beyond_its_limit_is_refused_by_name(tmp_path: Path, kind: str, path: str, limit: str) -> None:
    bound = (MACHINE if kind == "machine" else STUDY)[path]["constraints"][limit]
    assert f"{path}: must" in refusal(tmp_path, kind, path, _BEYOND[limit](bound))


@every_field
def test_a_misspelling_is_refused_and_the_right_name_suggested(tmp_path: Path, kind: str, path: str) -> None:
    said = refusal(tmp_path, kind, path[:-1], 1)
    assert f"Did you mean '{path}'?" in said


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_says_nothing_sensible_is_refused_by_name(tmp_path: Path, variable: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {variable}: .*must be .*'nonsense'"):
        load_user_config(tmp_path / "none.yaml", environ={variable: "nonsense"})
