"""Where each part of an environment snapshot comes from, and what stays out of it."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest

from llenergymeasure.core.host.environment import CudaVersion, detect_container, find_cuda_version, read_cpu
from llenergymeasure.core.host.host import installed_packages

TORCH_CUDA = "__version__ = '2.13.0+cu126'\ncuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n"
TORCH_CPU = "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n"
NVCC = (
    "#!/bin/sh\necho 'nvcc: NVIDIA (R) Cuda compiler driver'\necho 'Cuda compilation tools, release 12.2, V12.2.140'\n"
)


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    path = tmp_path / "cuda"
    (path / "bin").mkdir(parents=True)
    return path


def environ(toolkit: Path) -> dict[str, str]:
    return {"CUDA_HOME": str(toolkit), "PATH": ""}


def torch_package(directory: Path, version_py: str) -> Path:
    torch_dir = directory / "torch"
    torch_dir.mkdir()
    (torch_dir / "version.py").write_text(version_py)
    return torch_dir


def add_version_json(toolkit: Path) -> None:
    (toolkit / "version.json").write_text('{"cuda": {"name": "CUDA SDK", "version": "12.4.1"}}')


def add_nvcc(toolkit: Path) -> None:
    nvcc = toolkit / "bin" / "nvcc"
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)


def test_torch_tells_the_cuda_version_before_anyone_else(toolkit: Path, tmp_path: Path) -> None:
    add_version_json(toolkit)
    add_nvcc(toolkit)
    torch_dir = torch_package(tmp_path, TORCH_CUDA)

    assert find_cuda_version(environ(toolkit), torch_dir) == CudaVersion("12.6", "torch")


def test_a_cpu_build_of_torch_leaves_the_answer_to_the_version_file(toolkit: Path, tmp_path: Path) -> None:
    add_version_json(toolkit)
    add_nvcc(toolkit)

    found = find_cuda_version(environ(toolkit), torch_package(tmp_path, TORCH_CPU))

    assert found == CudaVersion("12.4.1", "version_file")


def test_an_old_toolkit_has_its_version_in_a_text_file(toolkit: Path) -> None:
    (toolkit / "version.txt").write_text("CUDA Version 10.2.89\n")

    assert find_cuda_version(environ(toolkit)) == CudaVersion("10.2.89", "version_file")


@pytest.mark.parametrize("damaged", ["", "not json", "[]", '{"cuda": 12}', "{}"])
def test_nvcc_is_asked_where_the_version_file_is_missing_or_damaged(toolkit: Path, damaged: str) -> None:
    add_nvcc(toolkit)
    if damaged:
        (toolkit / "version.json").write_text(damaged)

    assert find_cuda_version(environ(toolkit)) == CudaVersion("12.2", "nvcc")


def test_nvcc_on_the_path_is_found(toolkit: Path, tmp_path: Path) -> None:
    add_nvcc(toolkit)

    found = find_cuda_version({"PATH": str(toolkit / "bin"), "CUDA_HOME": str(tmp_path / "nowhere")})

    assert found == CudaVersion("12.2", "nvcc")


def test_no_source_gives_no_version(toolkit: Path) -> None:
    assert find_cuda_version(environ(toolkit), toolkit / "no-torch-here") is None


@pytest.mark.parametrize(
    ("file", "runtime"),
    [
        (".dockerenv", "docker"),
        ("run/.containerenv", "podman"),
        ("var/run/secrets/kubernetes.io/token", "kubernetes"),
        (".singularity.d/runscript", "singularity"),
    ],
)
def test_a_container_is_known_by_the_file_its_runtime_leaves(tmp_path: Path, file: str, runtime: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()

    found = detect_container({}, tmp_path)

    assert (found.detected, found.runtime) == (True, runtime)


@pytest.mark.parametrize(
    ("variable", "runtime"),
    [
        ("KUBERNETES_SERVICE_HOST", "kubernetes"),
        ("APPTAINER_CONTAINER", "apptainer"),
        ("SINGULARITY_CONTAINER", "singularity"),
    ],
)
def test_a_container_is_known_by_its_environment(tmp_path: Path, variable: str, runtime: str) -> None:
    assert detect_container({variable: "x"}, tmp_path).runtime == runtime


@pytest.mark.parametrize(
    ("group", "runtime"),
    [
        ("0::/docker/0123abcd", "docker"),
        ("11:cpu:/kubepods/burstable/pod1/docker-2", "kubernetes"),
        ("1:name=systemd:/machine.slice/libpod-77.scope", "podman"),
        ("0::/lxc/guest", "lxc"),
    ],
)
def test_a_container_is_known_by_its_control_group(tmp_path: Path, group: str, runtime: str) -> None:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text(group + "\n")

    assert detect_container({}, tmp_path).runtime == runtime


def test_a_container_is_known_by_what_its_manager_wrote_for_systemd(tmp_path: Path) -> None:
    (tmp_path / "run/systemd").mkdir(parents=True)
    (tmp_path / "run/systemd/container").write_text("systemd-nspawn\n")

    assert detect_container({}, tmp_path).runtime == "systemd-nspawn"


def test_a_plain_machine_is_no_container(tmp_path: Path) -> None:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text("0::/init.scope\n")

    found = detect_container({"PATH": "/bin"}, tmp_path)

    assert (found.detected, found.runtime) == (False, None)


def test_the_processor_is_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 7763\n\nprocessor\t: 1\n")
    for core, governor in (("cpu0", "performance"), ("cpu1", "performance"), ("cpu2", "powersave")):
        cpufreq = tmp_path / "sys/devices/system/cpu" / core / "cpufreq"
        cpufreq.mkdir(parents=True)
        (cpufreq / "scaling_governor").write_text(governor + "\n")

    cpu = read_cpu(tmp_path)

    assert cpu.model == "AMD EPYC 7763"
    assert cpu.governor == "performance, powersave"


def test_cores_threads_memory_and_load_are_read_from_the_kernel(tmp_path: Path) -> None:
    """Two packages of two cores, each of two threads."""
    (tmp_path / "proc").mkdir()
    blocks = [
        f"processor\t: {i}\nmodel name\t: X\nphysical id\t: {i // 4}\ncore id\t\t: {i // 2 % 2}\n" for i in range(8)
    ]
    (tmp_path / "proc/cpuinfo").write_text("\n".join(blocks))
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16384000 kB\nMemFree: 12 kB\n")
    (tmp_path / "proc/loadavg").write_text("3.25 1.00 0.50 2/345 6789\n")
    cpu = read_cpu(tmp_path)
    assert (cpu.cores, cpu.threads, cpu.memory_total_mb, cpu.load_1min) == (4, 8, 16000.0, 3.25)
    assert cpu.usable_threads == len(os.sched_getaffinity(0))


def test_what_the_kernel_does_not_tell_of_the_processor_is_none(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path)
    assert (cpu.cores, cpu.threads, cpu.memory_total_mb, cpu.load_1min) == (None, None, None, None)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50\n\nprocessor\t: 1\n\nModel\t: a board\n")
    assert (read_cpu(tmp_path).threads, read_cpu(tmp_path).cores, read_cpu(tmp_path).model) == (2, None, "a board")


def test_no_frequency_scaling_means_no_governor(tmp_path: Path) -> None:
    assert read_cpu(tmp_path).governor is None


def distribution(directory: Path, name: str, version: str, direct_url: str | None = None) -> metadata.Distribution:
    path = directory / f"{name}-{version}.dist-info"
    path.mkdir(parents=True)
    (path / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if direct_url is not None:
        (path / "direct_url.json").write_text(direct_url)
    return metadata.PathDistribution(path)


def test_packages_are_sorted_by_name_whatever_its_case(tmp_path: Path) -> None:
    found = [distribution(tmp_path, name, "1.0") for name in ("zeus", "PyYAML", "accelerate")]

    assert installed_packages(found) == ["accelerate==1.0", "PyYAML==1.0", "zeus==1.0"]


def test_the_package_that_an_import_would_find_is_the_one_listed(tmp_path: Path) -> None:
    first = distribution(tmp_path / "user", "torch", "2.13.0")
    second = distribution(tmp_path / "system", "torch", "2.4.0")

    assert installed_packages([first, second]) == ["torch==2.13.0"]


def test_a_version_control_install_tells_its_commit_and_no_address(tmp_path: Path) -> None:
    origin = (
        '{"url": "https://alice:s3cret@git.example.org/private/vllm", '
        '"vcs_info": {"vcs": "git", "commit_id": "0123abcd", "requested_revision": "main"}}'
    )

    assert installed_packages([distribution(tmp_path, "vllm", "0.32.0", origin)]) == ["vllm==0.32.0 (git 0123abcd)"]


def test_an_editable_install_tells_no_path(tmp_path: Path) -> None:
    origin = '{"url": "file:///home/alice/llenergymeasure", "dir_info": {"editable": true}}'

    assert installed_packages([distribution(tmp_path, "llenergymeasure", "2.0.0", origin)]) == [
        "llenergymeasure==2.0.0"
    ]


@pytest.mark.parametrize("origin", ["not json", "[]", '{"vcs_info": {"commit_id": "1"}}', '{"vcs_info": "git"}'])
def test_a_damaged_origin_file_costs_nothing_but_the_commit(tmp_path: Path, origin: str) -> None:
    assert installed_packages([distribution(tmp_path, "vllm", "1.0", origin)]) == ["vllm==1.0"]


def test_a_damaged_installation_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    broken = metadata.PathDistribution(tmp_path / "broken-1.0.dist-info")

    assert installed_packages([broken, distribution(tmp_path, "fine", "1.0")]) == ["fine==1.0"]
