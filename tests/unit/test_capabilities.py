"""What `llem config` says of a machine, from one with nothing to one with GPUs, and of the user's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.nvml.scripted import ScriptedGpu

from llenergymeasure.cli.config import EffectiveSettings, effective_settings, next_steps, render_capabilities
from llenergymeasure.core.capabilities import Capabilities, collect_capabilities
from llenergymeasure.core.gpu.driver import DeviceId, DriverMissingError, GpuDriver
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.host.docker import docker_version
from llenergymeasure.core.host.host import Capability, Host
from llenergymeasure.exceptions import BackendError, DockerError

if TYPE_CHECKING:
    from tests.nvml.fixtures import ScriptedNvmlFactory


def no_driver() -> GpuDriver:
    raise DriverMissingError("no driver")


def nothing_installed(name: str) -> Mapping[str, str]:
    raise BackendError(f"the {name} backend needs {name}>=1 (none installed). Install it.")


def no_sensor(devices: Sequence[DeviceId], host: Host) -> Sequence[Capability]:
    return [Capability("rapl", False, "no counters"), Capability("codecarbon", False, "not installed")]


def bare_machine(tmp_path: Path, **more: Any) -> Capabilities:
    defaults: dict[str, Any] = {
        "environ": {"PATH": "", "CUDA_HOME": str(tmp_path)},
        "open_driver": no_driver,
        "root": tmp_path,
        "torch_dir": lambda: None,
    }
    versions_of, read_meters = more.pop("versions_of", nothing_installed), more.pop("read_meters", no_sensor)
    return collect_capabilities(Host(**{**defaults, **more}), versions_of, read_meters)


@pytest.fixture
def defaults(tmp_path: Path) -> EffectiveSettings:
    return effective_settings(tmp_path / "config.yaml", {})


def test_a_machine_with_nothing_is_described_all_the_same(tmp_path: Path, defaults: EffectiveSettings) -> None:
    machine = bare_machine(tmp_path)

    assert machine.gpus == ()
    assert machine.gpu_problem == "no NVIDIA driver is loaded"
    assert [engine.works for engine in machine.engines] == [False, False, False]
    assert not machine.docker.works
    page = render_capabilities(machine, defaults, verbose=False)
    assert "none: no NVIDIA driver is loaded" in page
    assert 'pip install "llenergymeasure[pytorch]"' in page
    assert 'pip install "llenergymeasure[codecarbon]"' in page


def test_every_engine_and_energy_backend_that_a_config_may_name_is_told(tmp_path: Path) -> None:
    machine = bare_machine(tmp_path)

    assert {engine.name for engine in machine.engines} == {"pytorch", "vllm", "tensorrt"}
    assert {meter.name for meter in machine.meters} == {"zeus", "nvml", "rapl", "codecarbon"}


def test_an_installed_engine_is_told_with_its_versions(tmp_path: Path, defaults: EffectiveSettings) -> None:
    machine = bare_machine(tmp_path, versions_of=lambda _: {"torch": "2.13.0", "transformers": "5.23.0"})

    page = render_capabilities(machine, defaults, verbose=False)

    assert "pytorch      yes  torch 2.13.0, transformers 5.23.0" in page


def test_gpus_are_told_in_the_programs_order_and_their_meters_read(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path, defaults: EffectiveSettings
) -> None:
    scripted_nvml.play(
        ScriptedGpu.of("hopper", uuid="GPU-a", name="NVIDIA H100", memory_total_mb=80_000, memory_used_mb=20_000),
        ScriptedGpu.of("a100", uuid="GPU-b", name="NVIDIA A100"),
    )
    asked: list[Sequence[DeviceId]] = []

    def read_meters(devices: Sequence[DeviceId], host: Host) -> Sequence[Capability]:
        asked.append(devices)
        return [Capability("nvml", True, "GPU 0 draws 61.2 W")]

    environ = {"PATH": "", "CUDA_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1,0"}
    machine = bare_machine(tmp_path, open_driver=open_nvml, environ=environ, read_meters=read_meters)

    assert [gpu.uuid for gpu in machine.gpus] == ["GPU-b", "GPU-a"]
    assert asked == [("GPU-b", "GPU-a")]
    page = render_capabilities(machine, defaults, verbose=False)
    assert "GPU 1        NVIDIA H100, 80.0 GB (60.0 GB free), limit 700 W" in page
    assert "nvml         yes  GPU 0 draws 61.2 W" in page
    assert "GPU-a" not in page
    assert "GPU-a" in render_capabilities(machine, defaults, verbose=True)


def test_hidden_gpus_are_told_from_missing_ones(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper"))

    machine = bare_machine(tmp_path, open_driver=open_nvml, environ={"PATH": "", "CUDA_VISIBLE_DEVICES": ""})

    assert machine.gpus == ()
    assert "CUDA_VISIBLE_DEVICES" in (machine.gpu_problem or "")
    assert machine.driver_version == "550.54.15"


def test_the_next_step_fits_the_machine(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path, defaults: EffectiveSettings
) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper", persistence_mode=False))
    ready: dict[str, Any] = {
        "versions_of": lambda _: {"torch": "2.13.0"},
        "read_meters": lambda *_: [Capability("nvml", True, "GPU 0 draws 61.2 W")],
    }

    on_cpu = next_steps(bare_machine(tmp_path, **ready), defaults)
    on_gpu = next_steps(bare_machine(tmp_path, open_driver=open_nvml, **ready), defaults)

    assert on_cpu == ["Measure:  llem run --model builtin/tiny-llama -n 20 --device cpu"]
    assert on_gpu == [
        "Keep the driver loaded between runs:  sudo nvidia-smi -pm 1",
        "Measure:  llem run --model builtin/tiny-llama -n 20",
    ]


def test_the_next_step_takes_the_engine_that_works_where_its_runner_has_it(tmp_path: Path) -> None:
    known = '[{"Id": "sha256:5", "Config": {"Labels": null}}]'
    environ = docker_client(tmp_path, f"case $2 in inspect) echo '{known}';; *) echo 24.0.7;; esac")
    in_docker = effective_settings(tmp_path / "config.yaml", {"LLEM_RUNNER_VLLM": "docker:v"})
    machine = bare_machine(tmp_path, environ=environ)
    assert next_steps(machine, in_docker)[-1] == "Measure:  llem run --model builtin/tiny-llama -n 20 --backend vllm"
    assert not any("Install an engine" in step for step in next_steps(machine, in_docker))
    assert "Install an engine" in next_steps(bare_machine(tmp_path), in_docker)[0]


def docker_client(tmp_path: Path, script: str) -> dict[str, str]:
    """A `docker` on the PATH that behaves as the script says."""
    client = tmp_path / "docker"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)
    return {"PATH": str(tmp_path)}


def test_docker_is_there_when_its_daemon_answers(tmp_path: Path) -> None:
    assert docker_version(docker_client(tmp_path, "echo 24.0.7")) == "24.0.7"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'Cannot connect to the Docker daemon' >&2; exit 1", "Cannot connect to the Docker daemon"),
        ("exit 1", "no reason given"),
        ("exit 0", "no reason given"),
        ("printf 'no \\377 text' >&2; exit 1", "no \ufffd text"),
    ],
)
def test_docker_without_a_daemon_is_not_there(tmp_path: Path, script: str, reason: str) -> None:
    with pytest.raises(DockerError, match=reason):
        docker_version(docker_client(tmp_path, script))


def test_docker_without_a_client_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(DockerError, match="not installed"):
        docker_version({"PATH": str(tmp_path)})


def test_every_setting_tells_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("measurement:\n  datacenter_pue: 1.2\n  currency: EUR\nrunners:\nui: {prompt: true}\n")

    found = effective_settings(file, {"LLEM_DATACENTER_PUE": "1.5", "LLEM_RUNNER_VLLM": "docker:llem:2"})

    by_path = {setting.path: (setting.value, setting.source) for setting in found.settings}
    assert by_path["measurement.datacenter_pue"] == ("1.5", "environment variable LLEM_DATACENTER_PUE")
    assert by_path["measurement.currency"] == ("EUR", "file")
    assert by_path["runners.vllm"] == ("docker:llem:2", "environment variable LLEM_RUNNER_VLLM")
    assert by_path["ui.prompt"] == ("true", "file")
    assert by_path["runners.pytorch"] == ("local", "default")
    assert by_path["cluster.address"] == ("not set", "default")


def test_a_webhooks_address_is_not_told_in_full(tmp_path: Path, defaults: EffectiveSettings) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("output: {webhook_url: 'https://user:pw@hooks.example.org/s3cret?token=t0ken'}\n")

    page = render_capabilities(bare_machine(tmp_path), effective_settings(file, {}), verbose=True)

    assert "https://hooks.example.org/…" in page
    for secret in ("s3cret", "t0ken", "pw@"):
        assert secret not in page


BROKEN = {
    "yaml": "output: [",
    "key": "output: {result_dir: x}",
    "value": "measurement: {datacenter_pue: 0.5}",
    "list": "- a",
    "section": "output: results",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_user_config_is_shown_as_such(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)

    settings = effective_settings(file, {})

    assert settings.settings == ()
    assert settings.problem is not None
    machine = bare_machine(tmp_path)
    assert settings.problem.splitlines()[0] in render_capabilities(machine, settings, verbose=False)
    assert next_steps(machine, settings)[0].startswith(f"Mend {file}")


def test_a_variable_that_does_not_parse_is_shown_as_such(tmp_path: Path) -> None:
    settings = effective_settings(tmp_path / "config.yaml", {"LLEM_DATACENTER_PUE": "much"})

    assert settings.problem is not None
    assert "LLEM_DATACENTER_PUE" in settings.problem


def test_looking_writes_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()

    effective_settings(home / "llenergymeasure" / "config.yaml", {})
    bare_machine(home)

    assert list(home.iterdir()) == []
