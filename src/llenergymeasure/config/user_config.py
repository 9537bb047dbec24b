"""The user's settings for this machine: where results go, which runner and meter, what electricity means here.

They act when an experiment runs and never enter its config or its hash. Environment variables beat the file, the file
beats the defaults; a missing file is not an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import platformdirs
from pydantic import Field, ValidationError, field_validator

from llenergymeasure.config.base import ConfigModel, NonBlankStr
from llenergymeasure.config.errors import describe_validation_error
from llenergymeasure.config.schema import unknown_fields
from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.config.yaml_io import load_document
from llenergymeasure.constants import APP_NAME
from llenergymeasure.exceptions import ConfigError

CONFIG_FILE: Final = "config.yaml"
DOCKER_PREFIX: Final = "docker:"


class OutputSettings(ConfigModel):
    """Where things go."""

    results_dir: NonBlankStr = Field(default="./results", description="Directory for results of the command line.")
    model_cache_dir: NonBlankStr = Field(
        default="~/.cache/huggingface", description="Directory for models and data sets from the Hub."
    )
    webhook_url: NonBlankStr | None = Field(default=None, description="Receives the summary when a study ends.")


class RunnerSettings(ConfigModel):
    """Where each backend's experiments run."""

    pytorch: NonBlankStr = Field(default="local", description="local, or docker:<image>.")
    vllm: NonBlankStr = Field(default="local", description="local, or docker:<image>.")
    tensorrt: NonBlankStr = Field(default="local", description="local, or docker:<image>.")

    @field_validator("pytorch", "vllm", "tensorrt")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value.startswith("singularity:"):
            raise ValueError("singularity runners are not supported yet; use local or docker:<image>")
        if value == "local" or (value.startswith(DOCKER_PREFIX) and value != DOCKER_PREFIX):
            return value
        raise ValueError("must be local or docker:<image>")


class MeasurementSettings(ConfigModel):
    """What measures energy here, and what a kilowatt-hour means."""

    energy_backend: Literal["auto", "nvml", "zeus", "codecarbon", "rapl"] = Field(
        default="auto", description="Energy backend where the experiment says auto."
    )
    carbon_intensity_gco2_kwh: float | None = Field(
        default=None, ge=0.0, description="Carbon intensity of the electricity, in g CO2e per kWh."
    )
    datacenter_pue: float = Field(default=1.0, ge=1.0, description="Power usage effectiveness of the data centre.")
    electricity_price_kwh: float | None = Field(default=None, ge=0.0, description="Price per kWh, in currency.")
    currency: NonBlankStr = Field(default="USD", description="Currency of the price.")


class UiSettings(ConfigModel):
    """How the command line behaves."""

    verbosity: Literal["quiet", "standard", "verbose"] = Field(default="standard", description="How much is printed.")
    prompt: bool = Field(default=True, description="Ask on a terminal before resuming, and let Enter skip a gap.")


class ClusterSettings(ConfigModel):
    """Which cluster studies may use."""

    address: NonBlankStr | None = Field(default=None, description="Address of the cluster.")
    hardware: list[NonBlankStr] | None = Field(default=None, description="GPU names a study may use.")


class AdvancedSettings(ConfigModel):
    """What few need to change."""

    nvml_poll_interval_ms: int = Field(
        default=100, ge=10, le=10000, description="Time between two readings of the power sampler, in milliseconds."
    )
    power_gain_uncertainty_pct: float = Field(
        default=5.0, ge=0.0, le=100.0, description="95 % half-width of the power sensor's gain, in per cent."
    )


class ExecutionSettings(ConfigModel):
    """How long this machine needs between experiments."""

    config_gap_seconds: float = Field(default=60.0, ge=0.0, description="Wait between experiments, in seconds.")
    cycle_gap_seconds: float = Field(default=300.0, ge=0.0, description="Wait between cycles, in seconds.")


class UserConfig(ConfigModel):
    """Everything a user can say about a machine; every section and field is optional."""

    output: OutputSettings = Field(default_factory=OutputSettings, description="Where things go.")
    runners: RunnerSettings = Field(default_factory=RunnerSettings, description="Where experiments run.")
    measurement: MeasurementSettings = Field(default_factory=MeasurementSettings, description="Energy and its meaning.")
    ui: UiSettings = Field(default_factory=UiSettings, description="The command line.")
    cluster: ClusterSettings = Field(default_factory=ClusterSettings, description="The cluster.")
    advanced: AdvancedSettings = Field(default_factory=AdvancedSettings, description="Fine tuning.")
    execution: ExecutionSettings = Field(default_factory=ExecutionSettings, description="Thermal gaps.")


def get_user_config_path() -> Path:
    """Where the user config is looked for: `~/.config/llenergymeasure/config.yaml` on Linux."""
    return Path(platformdirs.user_config_dir(APP_NAME)) / CONFIG_FILE


def load_user_config(config_path: str | Path | None = None, environ: Mapping[str, str] | None = None) -> UserConfig:
    """The user's settings: the file, with environment variables over it.

    Args:
        config_path: The file; its usual place by default. It need not exist.
        environ: Environment variables; the process's own by default.

    Raises:
        ConfigError: The file cannot be parsed, has unknown keys or wrong values (all are named with their lines), or a
            variable's value cannot be used.
    """
    path = Path(config_path) if config_path is not None else get_user_config_path()
    environ = os.environ if environ is None else environ
    data: dict[str, Any] = {}
    if path.exists():
        document = load_document(path)
        unknown = unknown_fields(document.data, UserConfig, root=UserConfig)
        if unknown:
            raise ConfigError("\n".join(f"{document.where(field.path)}: {field.message}" for field in unknown))
        try:
            UserConfig.model_validate(document.data)
        except ValidationError as error:
            raise ConfigError("\n".join(describe_validation_error(error, document))) from error
        data = document.data
    for variable, (section, name, parse) in ENVIRONMENT.items():
        if variable in environ:
            data = {**data, section: {**(data.get(section) or {}), name: parse(variable, environ[variable])}}
    try:
        return UserConfig.model_validate(data)
    except ValidationError as error:  # the file was valid by itself, so this is a variable's doing
        raise ConfigError("\n".join(_named_after_variables(error, environ))) from error


def _named_after_variables(error: ValidationError, environ: Mapping[str, str]) -> list[str]:
    variables = {f"{section}.{name}": variable for variable, (section, name, _) in ENVIRONMENT.items()}
    lines = []
    for line in describe_validation_error(error):
        field = line.split(":", 1)[0]
        variable = variables.get(field)
        lines.append(line if variable is None else f"{variable}={environ.get(variable, '')!r}{line[len(field) :]}")
    return lines


def _number(variable: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{variable}={text!r}: must be a number. Correct it or unset the variable.") from None


def _text(variable: str, text: str) -> str:
    return text


def _no_prompt(variable: str, text: str) -> bool:
    """Whether to ask, from a variable that says not to: any usual spelling of yes and no."""
    if text.strip().lower() in ("1", "true", "yes", "on"):
        return False
    if text.strip().lower() in ("", "0", "false", "no", "off"):
        return True
    raise ConfigError(f"{variable}={text!r}: must be 1 or 0 (true, false, yes, no). Correct it or unset the variable.")


ENVIRONMENT: Final[Mapping[str, tuple[str, str, Callable[[str, str], Any]]]] = {
    **{f"LLEM_RUNNER_{backend.upper()}": ("runners", backend, _text) for backend in BACKENDS},
    "LLEM_CARBON_INTENSITY": ("measurement", "carbon_intensity_gco2_kwh", _number),
    "LLEM_DATACENTER_PUE": ("measurement", "datacenter_pue", _number),
    "LLEM_NO_PROMPT": ("ui", "prompt", _no_prompt),
}
"""Environment variables that beat the file: the setting each one means, and how its text is read."""
