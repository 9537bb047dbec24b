from __future__ import annotations

import pytest

from fake_nvml import FakeGpu, FakeNvml
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.gpu.driver import DriverMissingError, GpuDriver, GpuLostError
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.host.leftovers import leftover_gpu_memory
from llenergymeasure.exceptions import PreFlightError
from llenergymeasure.study.execute import check_backends
from llenergymeasure.study.gaps import environment_changes
from llenergymeasure.study.plan import BASE_S, timeout_s
from study_fakes import ENVIRONMENT, study_of


def test_memory_left_behind_names_gpu_amount_and_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    busy = FakeGpu("GPU-b", readings={"memory_used_mb": 12_000.0, "compute_pids": (41, 42)})
    idle = FakeGpu("GPU-a", readings={"memory_used_mb": 600.0, "compute_pids": ()})
    (message,) = leftover_gpu_memory(Host(open_driver=lambda: FakeNvml(idle, busy)))  # type: ignore[arg-type, return-value]
    assert message.startswith("GPU 1 (NVIDIA Fake) has 12.0 GB in use before the experiment (processes: 41, 42).")


def test_memory_on_a_gpu_we_do_not_use_is_not_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    busy = FakeGpu("GPU-b", readings={"memory_used_mb": 12_000.0, "compute_pids": (41,)})
    idle = FakeGpu("GPU-a", readings={"memory_used_mb": 0.0, "compute_pids": ()})
    assert leftover_gpu_memory(Host(open_driver=lambda: FakeNvml(idle, busy))) == ()  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("error", [DriverMissingError("no driver"), GpuLostError("fell off the bus")])
def test_gpus_that_cannot_be_asked_do_not_stop_a_study(error: Exception) -> None:
    def no_nvml() -> GpuDriver:
        raise error

    assert leftover_gpu_memory(Host(open_driver=no_nvml)) == ()


def test_environment_that_is_the_same_has_no_changes() -> None:
    assert environment_changes(ENVIRONMENT, ENVIRONMENT.model_copy()) == ()


def test_environment_changes_name_what_may_move_a_figure_and_nothing_else() -> None:
    now = ENVIRONMENT.model_copy(
        update={
            "gpu_names": ["H100"],
            "cuda_driver_version": None,
            "pip_freeze": ["torch==2.13.0", "Flash_Attn==2.7", "requests==99", "transformers==5.23.0"],
        }
    )
    assert environment_changes(ENVIRONMENT, now) == (
        "GPUs: A100 -> H100",
        "NVIDIA driver: 535.104 -> none",
        "flash-attn: none -> 2.7",
    )


def mixed_study() -> StudyConfig:
    return StudyConfig(
        experiments=[ExperimentConfig(model="a"), ExperimentConfig.model_validate({"model": "a", "backend": "vllm"})]
    )


def test_several_backends_in_one_environment_are_refused_with_the_settings_to_paste() -> None:
    with pytest.raises(PreFlightError) as refusal:
        check_backends(mixed_study().experiments, UserConfig())
    assert "several backends (pytorch, vllm)" in str(refusal.value)
    assert "      vllm: docker:llenergymeasure/vllm:2.0.0-cuda13" in str(refusal.value)
    assert "docker/build vllm" in str(refusal.value)


@pytest.mark.parametrize(
    ("installed", "moved"), [(("pytorch",), ["vllm"]), (("vllm",), ["pytorch"]), ((), ["pytorch", "vllm"])]
)
def test_of_several_backends_one_that_is_installed_stays(installed: tuple[str, ...], moved: list[str]) -> None:
    with pytest.raises(PreFlightError) as refusal:
        check_backends(mixed_study().experiments, UserConfig(), lambda: installed)
    assert [line.split(":")[0].strip() for line in str(refusal.value).splitlines() if ": docker:" in line] == moved


def test_several_backends_are_fine_when_docker_keeps_them_apart() -> None:
    machine = UserConfig.model_validate({"runners": {"vllm": "docker:llenergymeasure/vllm:2.0.0-cuda12"}})
    check_backends(mixed_study().experiments, machine)


def test_one_backend_needs_no_docker() -> None:
    check_backends(study_of("a", "b").experiments, UserConfig())


def test_time_limit_grows_with_prompts_tokens_model_and_slowness() -> None:
    base = {"model": "llama-7b", "n": 100, "max_output_tokens": 100}

    def limit_s(**changes: object) -> float:
        return timeout_s(ExperimentConfig.model_validate({**base, **changes}), UserConfig())

    assert limit_s() > BASE_S
    assert limit_s(n=1000) > limit_s()
    assert limit_s(max_output_tokens=1000) > limit_s()
    assert limit_s(model="llama-70b") > limit_s()
    assert limit_s(pytorch={"device": "cpu"}) > limit_s()
    assert limit_s(measurement={"min_duration_seconds": 1e6}) > 1e6
