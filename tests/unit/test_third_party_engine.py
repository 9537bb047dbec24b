"""An engine that another package registers is named in a config like this package's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import CommandLine
from installed_packages import InstalledPackages
from llenergymeasure import ExperimentConfig, run_experiment
from llenergymeasure.config.grid import expand_grid
from llenergymeasure.config.loader import load_experiment_config
from llenergymeasure.config.models import experiment_title
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.registry import get_backend, preload_modules, registry
from llenergymeasure.core.host.docker import default_image
from llenergymeasure.exceptions import BackendError, ConfigError, PreFlightError
from llenergymeasure.study.execute import check_backends

PROVIDER = """
from llenergymeasure.core.backends.registry import register

@register("{name}", needs="pydantic>=2 packaging", preload="json")
def provider():
    from scripted_experiments import BoardEngine
    return lambda clock, cache: BoardEngine(
        used_devices=("cpu",), clock=clock, name="{name}", prefill_s=0.01, step_s=0.001
    )
"""


@pytest.fixture
def llem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    (tmp_path / "work").mkdir()
    return CommandLine(tmp_path / "work", monkeypatch, capfd)


Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package with an engine; gives its name."""
    packages = InstalledPackages(tmp_path / "site", monkeypatch)

    def installed(name: str, source: str = PROVIDER) -> str:
        module = f"{name}_for_llem"
        packages.add(module, source.replace("{name}", name), "backends", f"{name} = {module}")
        return name

    return installed


def test_it_is_a_valid_backend_and_others_are_refused_with_its_name_among_those_that_would_do(install: Install) -> None:
    name = install("engine_a")
    config = ExperimentConfig.model_validate({"model": "gpt2", "backend": name, "precision": "fp32", "lora": None})
    assert config.backend == name
    assert experiment_title(config) == f"gpt2 / {name} / fp32"
    with pytest.raises(ConfigError, match=r"backend: 'engine_b' .*Use: pytorch, vllm, tensorrt, engine_a"):
        expand_grid({"model": "gpt2", "backend": ["pytorch", "engine_b"], "sweep": {"n": [1]}})


def test_without_its_package_it_is_refused() -> None:
    with pytest.raises(ValueError, match="backend"):
        ExperimentConfig.model_validate({"model": "gpt2", "backend": "engine_a"})


def test_it_is_swept_like_others(install: Install) -> None:
    name = install("engine_c")
    experiments, skipped = expand_grid(
        {"model": "gpt2", "backend": ["pytorch", name], "sweep": {"n": [8, 9], "pytorch.batch_size": [1, 2]}}
    )
    assert skipped == []
    assert [config.backend for config in experiments] == ["pytorch"] * 4 + [name] * 2
    assert load_experiment_config(None, {"model": "gpt2", "backend": name}).backend == name
    with pytest.raises(ConfigError, match="batch_size: backend 'engine_c' has no such field"):
        load_experiment_config(None, {"model": "gpt2", "backend": name, "batch_size": 4})


def test_beside_others_it_stays_and_they_go_to_docker(install: Install) -> None:
    first = ExperimentConfig.model_validate({"model": "m", "backend": install("engine_g")})
    second = first.model_copy(update={"backend": "engine_h"})
    ours = ExperimentConfig(model="m")
    with pytest.raises(PreFlightError) as beside_ours:
        check_backends([ours, first], UserConfig())
    said = str(beside_ours.value)
    assert "engine_g stays: there is no image of it." in said
    assert "(in a checkout: docker/build pytorch)" in said
    assert said.rstrip().endswith(f"    runners:\n      pytorch: docker:{default_image('pytorch')}")
    with pytest.raises(PreFlightError, match="Only one of engine_g, engine_h can be in a study") as beside_another:
        check_backends([first, second], UserConfig())
    assert "docker" not in str(beside_another.value)


def test_it_measures(install: Install, tmp_path: Path) -> None:
    name = install("engine_d")
    result = run_experiment(
        model="m",
        backend=name,
        n=2,
        max_output_tokens=4,
        passthrough_kwargs={"anything": 1},
        warmup={"n_warmup": 1, "thermal_floor_seconds": 0},
        baseline={"enabled": False},
        energy={"backend": None},
        output_dir=str(tmp_path / "results"),
    )
    assert (result.backend, result.output_tokens) == (name, 8)
    assert (result.effective_config["backend"], result.effective_config["passthrough_kwargs"]) == (
        name,
        {"anything": 1},
    )
    assert preload_modules(name) == ("json",)


def test_the_command_line_knows_it(install: Install, tmp_path: Path, llem: CommandLine) -> None:
    name = install("engine_e")
    previewed = llem("run", "-m", "builtin/tiny-llama", "-b", name, "--dry-run")
    assert previewed.code == 0
    assert f"tiny-llama / {name} / bf16" in previewed.out
    assert "pydantic 2." in previewed.out
    assert "Device       those that the engine_e engine takes" in previewed.out
    assert name in llem("config").out
    refused = llem("run", "-m", "m", "-b", "engin_e", "--dry-run")
    assert (refused.code, "Did you mean 'engine_e'?" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_package", "the engine_f backend (engine_f_for_llem) cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("", "unknown backend 'engine_f'"),
        (PROVIDER.replace("packaging", "no-such-package>=1"), 'Install it with: pip install "no-such-package>=1"'),
    ],
)
def test_a_package_that_does_not_do_its_part_is_told(
    install: Install, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    monkeypatch.setattr(registry, "_providers", dict(registry._providers))
    name = install("engine_f", source)
    assert preload_modules(name) in ((), ("json",))
    with pytest.raises(BackendError) as caught:
        get_backend(name)
    assert said in str(caught.value)
