"""Machine settings: defaults, file, environment, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from llenergymeasure.config.user_config import UserConfig, get_user_config_path, load_user_config
from llenergymeasure.exceptions import ConfigError


def _file(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_a_missing_file_means_the_defaults_of_the_specification(tmp_path: Path) -> None:
    config = load_user_config(tmp_path / "nowhere" / "config.yaml", environ={})

    assert config == UserConfig()
    assert (config.output.results_dir, config.output.model_cache_dir) == ("./results", "~/.cache/huggingface")
    assert config.output.webhook_url is None
    assert config.runners.model_dump() == {"pytorch": "local", "vllm": "local", "tensorrt": "local"}
    assert config.measurement.model_dump() == {
        "energy_backend": "auto",
        "carbon_intensity_gco2_kwh": None,
        "datacenter_pue": 1.0,
        "electricity_price_kwh": None,
        "currency": "USD",
    }
    assert config.ui.model_dump() == {"verbosity": "standard", "prompt": True}
    assert config.cluster.model_dump() == {"address": None, "hardware": None, "max_wait_seconds": 86_400.0}
    assert config.advanced.model_dump() == {"nvml_poll_interval_ms": 100, "power_gain_uncertainty_pct": 5.0}
    assert config.execution.model_dump() == {"config_gap_seconds": 60.0, "cycle_gap_seconds": 300.0}


@pytest.mark.parametrize("text", ["", "# nothing set yet\n", "{}\n"])
def test_a_file_that_sets_nothing_means_defaults(tmp_path: Path, text: str) -> None:
    assert load_user_config(_file(tmp_path, text), environ={}) == UserConfig()


def test_a_missing_parent_that_is_a_file_means_defaults(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert load_user_config(tmp_path / "file" / "config.yaml", environ={}) == UserConfig()


def test_the_file_is_at_the_platforms_config_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = get_user_config_path()
    assert path == tmp_path / "llenergymeasure" / "config.yaml"
    assert not path.parent.exists()

    path.parent.mkdir()
    path.write_text("ui: {verbosity: quiet}\n")
    assert load_user_config(environ={}).ui.verbosity == "quiet"


def test_settings_come_from_the_file(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        "output: {results_dir: /data}\nrunners: {vllm: 'docker:llenergymeasure/vllm:2.0.0-cuda12'}\n"
        "cluster: {hardware: [NVIDIA H100]}\nadvanced: {nvml_poll_interval_ms: 10}\n",
    )
    config = load_user_config(path, environ={})

    assert config.output.results_dir == "/data"
    assert config.runners.vllm == "docker:llenergymeasure/vllm:2.0.0-cuda12"
    assert config.cluster.hardware == ["NVIDIA H100"]
    assert config.advanced.nvml_poll_interval_ms == 10


def test_empty_sections_mean_their_defaults(tmp_path: Path) -> None:
    path = _file(tmp_path, "".join(f"{section}:\n" for section in UserConfig.model_fields))
    assert load_user_config(path, environ={}) == UserConfig()
    assert load_user_config(path, environ={"LLEM_DATACENTER_PUE": "1.4"}).measurement.datacenter_pue == 1.4


def test_environment_variables_beat_the_file(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        "runners: {pytorch: 'docker:a', vllm: 'docker:a', tensorrt: 'docker:a'}\n"
        "measurement: {carbon_intensity_gco2_kwh: 100, datacenter_pue: 1.1, currency: EUR}\nui: {prompt: true}\n",
    )
    config = load_user_config(
        path,
        environ={
            "LLEM_RUNNER_PYTORCH": "local",
            "LLEM_RUNNER_VLLM": "docker:b",
            "LLEM_RUNNER_TENSORRT": "docker:c",
            "LLEM_CARBON_INTENSITY": "250.5",
            "LLEM_DATACENTER_PUE": "1.4",
            "LLEM_NO_PROMPT": "1",
        },
    )
    assert config.runners.model_dump() == {"pytorch": "local", "vllm": "docker:b", "tensorrt": "docker:c"}
    assert config.measurement.carbon_intensity_gco2_kwh == 250.5
    assert (config.measurement.datacenter_pue, config.measurement.currency) == (1.4, "EUR")
    assert config.ui.prompt is False


def test_an_empty_variable_counts_as_unset() -> None:
    assert load_user_config(Path("nowhere"), environ={"LLEM_NO_PROMPT": "", "LLEM_DATACENTER_PUE": " "}) == UserConfig()


@pytest.mark.parametrize(("text", "prompt"), [("true", False), ("YES", False), ("0", True), ("off", True)])
def test_no_prompt_is_a_switch(text: str, prompt: bool) -> None:
    assert load_user_config(Path("nowhere"), environ={"LLEM_NO_PROMPT": text}).ui.prompt is prompt


def test_a_singularity_runner_may_be_named_as_a_docker_one_may() -> None:
    named = load_user_config(Path("nowhere"), environ={"LLEM_RUNNER_PYTORCH": "singularity:/x.sif"})
    assert named.runners.pytorch == "singularity:/x.sif"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LLEM_CARBON_INTENSITY", "much", "must be a number, got 'much'"),
        ("LLEM_CARBON_INTENSITY", "-1", "must be at least 0"),
        ("LLEM_CARBON_INTENSITY", "nan", "must be a finite number"),
        ("LLEM_CARBON_INTENSITY", "1e308", "must be at most"),  # whose emissions are no number
        ("LLEM_DATACENTER_PUE", "0.9", "must be at least 1"),
        ("LLEM_DATACENTER_PUE", "1e308", "must be at most"),
        ("LLEM_NO_PROMPT", "perhaps", "must be 1 or 0, got 'perhaps'"),
        ("LLEM_RUNNER_VLLM", "dokcer:x", r"must be local or docker:<image>, got 'dokcer:x'"),
        ("LLEM_RUNNER_VLLM", "docker:", r"must be local or docker:<image>"),
        ("LLEM_RUNNER_VLLM", "docker: x", r"must be local or docker:<image>"),
        ("LLEM_RUNNER_VLLM", "docker:--privileged", r"must be local or docker:<image>"),
        ("LLEM_RUNNER_VLMM", "docker:x", r"sets nothing. Did you mean LLEM_RUNNER_VLLM\?"),
        ("LLEM_RUNNER_NANO", "docker:x", r"sets nothing. Did you mean LLEM_RUNNER_PYTORCH or .*_VLLM or"),
        ("LLEM_DATACENTRE_PUE", "1.4", r"sets nothing. Did you mean LLEM_DATACENTER_PUE\?"),
        ("LLEM_RUNNER_VLLM", "singularity:", r"must be local or docker:<image>"),
    ],
)
def test_a_variable_that_does_not_parse_is_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"environment variable {variable}: .*{message}"):
        load_user_config(Path("nowhere"), environ={variable: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "output: {result_dir: /x}\n",
            r"line 1: unknown field 'output.result_dir'. Did you mean 'output.results_dir'\?",
        ),
        ("results_dir: /x\n", r"line 1: unknown field 'results_dir'. Did you mean 'output.results_dir'\?"),
        ("runner: {}\n", r"unknown field 'runner'. Did you mean 'runners'\?"),
        ("measurement:\n  datacenter_pue: 0.5\n", r"line 2: measurement.datacenter_pue: must be at least 1, got 0.5"),
        ("advanced:\n  nvml_poll_interval_ms: 5\n", r"line 2: advanced.nvml_poll_interval_ms: must be at least 10"),
        ("advanced:\n  nvml_poll_interval_ms: 10001\n", r"advanced.nvml_poll_interval_ms: must be at most 10000"),
        (
            "runners:\n  vllm: podman:x\n",
            r"line 2: runners.vllm: must be local or docker:<image>, got 'podman:x'",
        ),
        (
            'output: {results_dir: "a\\0b"}\n',
            r"line 1: output.results_dir: holds a control character",
        ),
        ('output: {model_cache_dir: "a\\nb"}\n', r"line 1: output.model_cache_dir: .*holds a control character"),
        ("output: {webhook_url: ftp://x}\n", r"output.webhook_url: must start with http"),
        ("ui: {verbosity: loud}\n", r"ui.verbosity: must be one of quiet, standard, verbose, got 'loud'"),
        ("ui: {prompt: 1}\n", r"ui.prompt: must be true or false"),
        ("execution: {config_gap_seconds: -1}\n", r"execution.config_gap_seconds: must be at least 0"),
        ("execution: {cycle_gap_seconds: .inf}\n", r"execution.cycle_gap_seconds: must be a finite number"),
        ("cluster: {hardware: []}\n", r"cluster.hardware: must not be empty"),
        ("output: [\n", r"line \d+, column \d+: invalid YAML"),
        ("- a\n", r"expected a mapping"),
    ],
)
def test_a_wrong_file_is_named_with_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_user_config(path, environ={})
    assert str(caught.value).startswith(str(path))
