"""What belongs to the machine and its user, never to an experiment: runners, paths, prices, sensor settings.

The file is `~/.config/llenergymeasure/config.yaml` on Linux; a few environment variables beat it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import platformdirs
from pydantic import AfterValidator, Field, ValidationError

from llenergymeasure.config.base import ConfigModel, NonBlankStr, PathStr, deep_merge, set_dotted
from llenergymeasure.config.errors import describe_validation_error, reject_unknown, unknown_keys
from llenergymeasure.config.meters import MeterName
from llenergymeasure.config.yaml_io import LoadedDocument, SourceMap, load_document
from llenergymeasure.constants import APP_NAME
from llenergymeasure.exceptions import ConfigError
from llenergymeasure.security import user_path, validate_path

LARGEST_FACTOR: Final = 1e9
"""Of what energy is multiplied by: far above any, and the products of several are numbers still."""


def _check_path(value: str) -> str:
    try:
        validate_path(value)
    except ConfigError as error:
        raise ValueError(f"cannot be used: {error}") from error
    return value


NO_RUNNERS_YET: Final = ("singularity",)
"""Kinds of runner that a file may name and that this release cannot use: pre-flight refuses them."""

_CONTAINERS: Final = ("docker", *NO_RUNNERS_YET)


def _check_runner(value: str) -> str:
    kind, _, target = value.partition(":")
    if value != "local" and not (kind in _CONTAINERS and re.fullmatch(r"[^-\s]\S*", target)):
        raise ValueError("must be local or docker:<image>")
    return value


def _check_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value


Directory = Annotated[PathStr, AfterValidator(_check_path)]
Runner = Annotated[NonBlankStr, AfterValidator(_check_runner)]
HttpUrl = Annotated[NonBlankStr, AfterValidator(_check_url)]


class OutputSettings(ConfigModel):
    """Where things go."""

    results_dir: Directory = "./results"
    """Directory the results go to."""
    model_cache_dir: Directory = "~/.cache/huggingface"
    """Cache of the Hugging Face Hub."""
    webhook_url: HttpUrl | None = None
    """URL that gets the summary when a study ends."""


class RunnerSettings(ConfigModel):
    """Where each backend's experiments execute: `local` or `docker:<image>`."""

    pytorch: Runner = "local"
    """Runner of the pytorch backend."""
    vllm: Runner = "local"
    """Runner of the vllm backend."""
    tensorrt: Runner = "local"
    """Runner of the tensorrt backend."""

    def of(self, backend: str) -> str:
        """The runner of a backend; engines of other packages run locally."""
        return str(getattr(self, backend)) if backend in type(self).model_fields else "local"


class MeasurementSettings(ConfigModel):
    """How this machine is measured and what its energy means."""

    energy_backend: MeterName = "auto"
    """Energy backend where the experiment says auto."""
    carbon_intensity_gco2_kwh: float | None = Field(default=None, ge=0.0, le=LARGEST_FACTOR)
    """Grams of CO2 per kWh of the electricity used here."""
    datacenter_pue: float = Field(default=1.0, ge=1.0, le=LARGEST_FACTOR)
    """Power usage effectiveness of the site."""
    electricity_price_kwh: float | None = Field(default=None, ge=0.0, le=LARGEST_FACTOR)
    """Price of one kWh."""
    currency: NonBlankStr = "USD"
    """Currency of the price."""


class UISettings(ConfigModel):
    """How the command line talks."""

    verbosity: Literal["quiet", "standard", "verbose"] = "standard"
    """How much it says."""
    prompt: bool = True
    """Ask on a terminal, e.g. whether to resume; false asks nothing."""


class ClusterSettings(ConfigModel):
    """The cluster studies are spread over."""

    address: NonBlankStr | None = None
    """Address of the Ray cluster, or auto; used by studies that are started without --cluster."""
    hardware: list[NonBlankStr] | None = Field(default=None, min_length=1)
    """GPU names a study may use, or parts of them."""
    max_wait_seconds: float = Field(default=86_400.0, ge=0.0)
    """Seconds a study waits for a node that can go on with it, when all are busy or gone."""


class AdvancedSettings(ConfigModel):
    """Settings of the power sensor."""

    nvml_poll_interval_ms: int = Field(default=100, ge=10, le=10_000)
    """Milliseconds between looks at the power of one GPU."""
    power_gain_uncertainty_pct: float = Field(default=5.0, ge=0.0, le=100.0)
    """95 % half-width of the sensor's gain error, in per cent."""


class ExecutionSettings(ConfigModel):
    """How long this machine cools down."""

    config_gap_seconds: float = Field(default=60.0, ge=0.0)
    """Seconds between experiments of a study."""
    cycle_gap_seconds: float = Field(default=300.0, ge=0.0)
    """Seconds between cycles of a study."""


class UserConfig(ConfigModel):
    """All machine settings; every section and field may be left out."""

    output: OutputSettings = Field(default_factory=OutputSettings)
    """Where things go."""
    runners: RunnerSettings = Field(default_factory=RunnerSettings)
    """Where experiments execute."""
    measurement: MeasurementSettings = Field(default_factory=MeasurementSettings)
    """How to measure here."""
    ui: UISettings = Field(default_factory=UISettings)
    """How the command line talks."""
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    """The cluster, if there is one."""
    advanced: AdvancedSettings = Field(default_factory=AdvancedSettings)
    """Sensor settings."""
    execution: ExecutionSettings = Field(default_factory=ExecutionSettings)
    """How long to cool down."""


def load_user_config(config_path: str | Path | None = None, environ: Mapping[str, str] | None = None) -> UserConfig:
    """Read the machine's settings; environment variables beat the file, a missing file means defaults.

    Args:
        config_path: `None`: the user's own.
        environ: `None`: this process's.

    Raises:
        ConfigError: The file does not parse or a setting is wrong; names the file and field, or the variable.
    """
    document = _read(user_path(config_path) if config_path is not None else get_user_config_path())
    reject_unknown(unknown_keys(document.data, UserConfig), document)
    from_environment, sources = environment_settings(os.environ if environ is None else environ)
    try:
        return UserConfig.model_validate(deep_merge(document.data, from_environment))
    except ValidationError as error:
        raise ConfigError("\n".join(describe_validation_error(error, document, sources))) from error


def get_user_config_path() -> Path:
    """Where the user's settings are on this platform; nothing is created.

    Raises:
        ConfigError: The user has no home directory, in which most of what is used here lies.
    """
    try:
        Path.home()
        return platformdirs.user_config_path(APP_NAME) / "config.yaml"
    except RuntimeError as error:
        raise ConfigError(
            f"user {os.getuid()} has no home directory: HOME is no absolute path, and passwd has none. "
            "Set HOME to a directory that this user may write to."
        ) from error


def environment_settings(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What environment variables set, nested as in the file, and for each dotted path the variable behind it.

    An empty variable counts as unset.

    Raises:
        ConfigError: A value does not parse; names the variable.
    """
    for name, text in environ.items():
        if text.strip():
            _refuse_misspelt(name)
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for variable, (path, parse, expected) in _VARIABLES.items():
        text = environ.get(variable, "").strip()
        if text:
            try:
                set_dotted(settings, path, parse(text))
            except ValueError as error:
                raise ConfigError(f"environment variable {variable}: must be {expected}, got {text!r}.") from error
            sources[path] = f"environment variable {variable}"
    return settings, sources


def _refuse_misspelt(name: str) -> None:
    """Refuse a variable that somebody has set for this tool, and that would do nothing."""
    if name in _VARIABLES or not name.startswith(_PREFIX):
        return
    meant = difflib.get_close_matches(name, _VARIABLES, n=1, cutoff=_CLOSE)
    if not meant and name.startswith(_RUNNER_PREFIX):
        meant = [known for known in _VARIABLES if known.startswith(_RUNNER_PREFIX)]
    if meant:
        raise ConfigError(f"environment variable {name}: sets nothing. Did you mean {' or '.join(meant)}?")


def _read(path: Path) -> LoadedDocument:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return LoadedDocument({}, SourceMap(), path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from error
    return load_document(path, empty_is_fine=True)


def _no_prompt(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return False
    if text.lower() in ("0", "false", "no", "off"):
        return True
    raise ValueError(text)


_PREFIX: Final = "LLEM_"
_RUNNER_PREFIX: Final = f"{_PREFIX}RUNNER_"
_CLOSE: Final = 0.8
"""How like a variable has to be to one of these to be a misspelt one (`difflib`)."""

_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], Any], str]]] = {
    **{f"{_RUNNER_PREFIX}{name.upper()}": (f"runners.{name}", str, "text") for name in RunnerSettings.model_fields},
    "LLEM_CARBON_INTENSITY": ("measurement.carbon_intensity_gco2_kwh", float, "a number"),
    "LLEM_DATACENTER_PUE": ("measurement.datacenter_pue", float, "a number"),
    "LLEM_NO_PROMPT": ("ui.prompt", _no_prompt, "1 or 0"),
}
"""Environment variable → the setting it beats, how its text is read, and what it must be."""
