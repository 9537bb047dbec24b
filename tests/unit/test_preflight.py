"""Pre-flight tells every reason at once, and tells doubts from reasons."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import StepEngine, VirtualClock
from tests.nvml.scripted import MigSlice, Process, ScriptedGpu

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId, DriverMissingError, GpuDriver
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.host.processes import relatives
from llenergymeasure.core.preflight import Ready, run_preflight
from llenergymeasure.exceptions import BackendError, PreFlightError
from llenergymeasure.security import sanitize_experiment_id

if TYPE_CHECKING:
    from tests.nvml.fixtures import ScriptedNvmlFactory

LLAMA_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
"""6.74 billion parameters: 13.5 GB in bf16; a token's keys and values are 0.5 MB."""


@dataclass
class Engine(StepEngine):
    """An engine that may refuse."""

    problems: list[str] = field(default_factory=list)
    plan_error: BackendError | None = None

    def preflight(self, config: ExperimentConfig) -> Sequence[str]:
        return self.problems

    def plan_devices(self, config: ExperimentConfig) -> tuple[DeviceId, ...]:
        if self.plan_error is not None:
            raise self.plan_error
        return super().plan_devices(config)


def no_driver() -> GpuDriver:
    raise DriverMissingError("no NVIDIA driver")


def engine(*devices: DeviceId, **more: Any) -> Engine:
    return Engine(VirtualClock(), used_devices=devices or (CPU_DEVICE,), **more)


def host(tmp_path: Path, **more: Any) -> Host:
    defaults: dict[str, Any] = {
        "environ": {},
        "open_driver": no_driver,
        "root": tmp_path / "no-powercap",
        "clock": VirtualClock(),
        "calibration_dir": tmp_path / "no-calibrations",
    }
    return Host(**{**defaults, **more})


def gpu_host(tmp_path: Path, **more: Any) -> Host:
    return host(tmp_path, open_driver=open_nvml, **more)


def config(**fields: Any) -> ExperimentConfig:
    return ExperimentConfig(**{"model": "somebody/some-model", "dataset": {"synthetic": {"n": 10}}, **fields})


def preflight(case: ExperimentConfig, on: Engine, where: Host, **more: Any) -> Ready:
    return run_preflight(case, on, more.pop("machine", UserConfig()), more.pop("meter_name", "auto"), where)


def silent(ready: Ready) -> bool:
    return ready.warnings == ready.logged == ()


def failures_of(case: ExperimentConfig, on: Engine, where: Host, **more: Any) -> tuple[str, ...]:
    with pytest.raises(PreFlightError) as caught:
        preflight(case, on, where, **more)
    return caught.value.failures


def test_a_fine_experiment_passes_in_silence(tmp_path: Path) -> None:
    report = preflight(config(output_dir=str(tmp_path)), engine(), host(tmp_path))

    assert report.warnings == ()


def test_every_failure_is_told_at_once(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    case = config(dataset="nowhere.jsonl", output_dir=str(blocker / "results"))
    machine = UserConfig.model_validate({"runners": {"pytorch": "singularity:llem.sif"}})

    with pytest.raises(PreFlightError) as caught:
        preflight(case, engine(problems=["model: no such model."]), host(tmp_path), machine=machine, meter_name="rapl")

    assert len(caught.value.failures) == 5
    text = str(caught.value)
    assert text.startswith("Pre-flight failed: 5 issues")
    for part in ("model: no such model.", "runners.pytorch", "nowhere.jsonl", "rapl", str(blocker)):
        assert part in text


def test_an_engine_without_devices_is_one_failure_not_two(tmp_path: Path) -> None:
    no_gpu = "no CUDA GPU is available. Pass --device cpu."

    found = failures_of(config(), engine(problems=[no_gpu], plan_error=BackendError(no_gpu)), host(tmp_path))

    assert found == (no_gpu,)


def test_an_engine_that_cannot_plan_for_another_reason_is_told_too(tmp_path: Path) -> None:
    found = failures_of(
        config(), engine(problems=["model: missing."], plan_error=BackendError("no GPU.")), host(tmp_path)
    )

    assert found == ("model: missing.", "no GPU.")


@pytest.mark.parametrize("backend", ["pytorch", "vllm", "tensorrt"])
def test_a_runner_that_this_version_lacks_is_refused_with_the_way_out(tmp_path: Path, backend: str) -> None:
    machine = UserConfig.model_validate({"runners": {backend: "singularity:llem.sif"}})

    (failure,) = failures_of(config(backend=backend), engine(), host(tmp_path), machine=machine)

    assert "the singularity runner is not supported yet" in failure
    assert f"LLEM_RUNNER_{backend.upper()}=local" in failure


def test_a_runner_that_a_variable_chose_is_told_with_the_variable(tmp_path: Path) -> None:
    machine = UserConfig.model_validate({"runners": {"pytorch": "singularity:llem.sif"}})
    here = replace(host(tmp_path), environ={"LLEM_RUNNER_PYTORCH": "singularity:llem.sif"})

    (failure,) = failures_of(config(), engine(), here, machine=machine)

    assert failure.startswith("environment variable LLEM_RUNNER_PYTORCH: 'singularity:llem.sif'")
    assert "user config" not in failure


def test_the_runner_of_another_backend_does_not_matter(tmp_path: Path) -> None:
    machine = UserConfig.model_validate({"runners": {"vllm": "singularity:llem.sif"}})

    assert preflight(config(), engine(), host(tmp_path), machine=machine).warnings == ()


def test_more_prompts_than_the_data_set_has_is_a_failure_with_both_numbers(tmp_path: Path) -> None:
    data = tmp_path / "three.jsonl"
    data.write_text('{"prompt": "a"}\n' * 3)

    (failure,) = failures_of(config(dataset=str(data), n=4), engine(), host(tmp_path))

    assert "3" in failure
    assert "4" in failure


def test_an_energy_backend_asked_for_by_name_must_work(tmp_path: Path) -> None:
    (failure,) = failures_of(config(), engine(), host(tmp_path), meter_name="rapl")

    assert "rapl" in failure


@pytest.mark.parametrize("meter_name", ["auto", None])
def test_a_machine_without_sensors_is_no_reason_to_refuse(tmp_path: Path, meter_name: str | None) -> None:
    assert preflight(config(), engine(), host(tmp_path), meter_name=meter_name).warnings == ()


def test_a_directory_that_does_not_exist_yet_is_fine(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b"

    preflight(config(output_dir=str(wanted)), engine(), host(tmp_path))

    assert not wanted.exists()


def test_a_directory_that_is_a_link_to_nowhere_is_a_failure(tmp_path: Path) -> None:
    link = tmp_path / "results"
    link.symlink_to("unmounted")

    (failure,) = failures_of(config(output_dir=str(link / "today")), engine(), host(tmp_path))

    assert f"{link} is a link to unmounted, which does not exist" in failure


def test_a_directory_without_permission_is_a_failure(tmp_path: Path) -> None:
    forbidden = host(tmp_path, is_writable=lambda path: path != tmp_path)

    (failure,) = failures_of(config(output_dir=str(tmp_path / "new" / "results")), engine(), forbidden)

    assert f"{tmp_path} is not writable" in failure


def test_a_nearly_full_disk_is_advice(tmp_path: Path) -> None:
    nearly_full = host(tmp_path, disk_usage=lambda _: (1000 * 10**9, 901 * 10**9, 99 * 10**9))

    (advice,) = preflight(config(output_dir=str(tmp_path)), engine(), nearly_full).logged

    assert "99.0 of 1000.0 GB" in advice


def test_a_tenth_of_the_disk_is_enough(tmp_path: Path) -> None:
    tenth = host(tmp_path, disk_usage=lambda _: (1000, 900, 100))

    assert preflight(config(output_dir=str(tmp_path)), engine(), tenth).logged == ()


def test_what_is_not_fatal_reaches_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nearly_full = host(tmp_path, disk_usage=lambda _: (1000, 999, 1))

    with caplog.at_level(logging.WARNING):
        warnings = run_preflight(config(output_dir=str(tmp_path)), engine(), UserConfig(), None, nearly_full).warnings

    assert warnings == ()
    assert "of the disk" in caplog.text


@pytest.fixture
def llama_7b(tmp_path: Path) -> str:
    directory = tmp_path / "llama-7b"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA_7B))
    return str(directory)


def test_a_model_larger_than_the_gpus_free_memory_is_refused(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path, llama_7b: str
) -> None:
    scripted_nvml.play(ScriptedGpu.of("ada", uuid="GPU-1", memory_total_mb=24_000, memory_used_mb=12_000))

    (failure,) = failures_of(config(model=llama_7b), engine("GPU-1"), gpu_host(tmp_path))

    assert "13.8 GB" in failure  # 13.5 GB of weights, 0.3 GB for 640 tokens of cache
    assert "12.0 GB are free" in failure


def test_a_model_that_fits_without_reserve_is_run_with_advice(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path, llama_7b: str
) -> None:
    scripted_nvml.play(ScriptedGpu.of("ada", uuid="GPU-1", memory_total_mb=24_000, memory_used_mb=9_000))

    (advice,) = preflight(config(model=llama_7b), engine("GPU-1"), gpu_host(tmp_path)).logged

    assert "may not suffice" in advice


def test_a_model_spread_over_gpus_has_all_their_memory(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path, llama_7b: str
) -> None:
    boards = [ScriptedGpu.of("ada", uuid=f"GPU-{i}", memory_total_mb=10_000, memory_used_mb=0) for i in range(2)]
    scripted_nvml.play(*boards)
    spread = config(model=llama_7b, pytorch={"device_map": "auto"})

    assert preflight(spread, engine("GPU-0", "GPU-1"), gpu_host(tmp_path)).logged == ()


def test_each_of_several_processes_needs_the_whole_model_on_its_gpu(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path, llama_7b: str
) -> None:
    boards = [ScriptedGpu.of("ada", uuid=f"GPU-{i}", memory_total_mb=10_000, memory_used_mb=0) for i in range(2)]
    scripted_nvml.play(*boards)
    copies = config(model=llama_7b, pytorch={"num_processes": 2})

    (failure,) = failures_of(copies, engine("GPU-0", "GPU-1"), gpu_host(tmp_path))

    assert "10.0 GB are free" in failure


def test_a_model_of_unknown_size_is_not_refused(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    scripted_nvml.play(ScriptedGpu.of("ada", uuid="GPU-1", memory_total_mb=10))

    assert preflight(config(), engine("GPU-1"), gpu_host(tmp_path)).logged == ()


def test_persistence_mode_off_is_a_warning_of_the_result(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper", uuid="GPU-1", persistence_mode=False))

    (warning,) = preflight(config(), engine("GPU-1"), gpu_host(tmp_path)).warnings

    assert str(warning).startswith("gpu_persistence_mode_off: ")


def test_only_the_boards_in_use_are_looked_at(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    scripted_nvml.play(
        ScriptedGpu.of("hopper", uuid="GPU-used"),
        ScriptedGpu.of("hopper", uuid="GPU-other", persistence_mode=False, processes=[Process(1)], power_limit_w=300.0),
    )

    report = preflight(config(), engine("GPU-used"), gpu_host(tmp_path))

    assert silent(report)


def test_somebody_elses_work_on_the_gpu_is_a_warning_and_ours_is_not(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path
) -> None:
    mine, stranger = os.getpid(), _unrelated_process()
    scripted_nvml.play(ScriptedGpu.of("hopper", uuid="GPU-1", processes=[Process(mine), Process(stranger)]))

    (warning,) = preflight(config(), engine("GPU-1"), gpu_host(tmp_path)).warnings

    assert str(warning).startswith("foreign_gpu_process: ")
    assert str(stranger) in str(warning)
    assert str(mine) not in str(warning)


def _unrelated_process() -> int:
    """Any process of this machine that neither started this one nor was started by it."""
    running = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    return max(running - relatives())


def test_a_damaged_calibration_is_a_failure_before_it_costs_the_run_its_energy(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path
) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper", uuid="GPU-1"), ScriptedGpu.of("hopper", uuid="GPU-2"))
    where = gpu_host(tmp_path, calibration_dir=tmp_path)
    (tmp_path / f"{sanitize_experiment_id(f'GPU-1_{open_nvml().driver_version()}')}.json").write_text('{"uuid": "GP')

    (failure,) = failures_of(config(), engine("GPU-1"), where)

    assert "is not a sensor calibration" in failure
    assert failure.endswith("delete it or calibrate again")
    assert silent(preflight(config(), engine("GPU-2"), where))


def test_a_calibration_with_another_driver_is_missed_not_used(
    scripted_nvml: ScriptedNvmlFactory, tmp_path: Path
) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper", uuid="GPU-1"), ScriptedGpu.of("hopper", uuid="GPU-12"))
    for driver in ("470.57.02", "535.104"):
        (tmp_path / f"{sanitize_experiment_id(f'GPU-1_{driver}')}.json").write_text("whatever")

    (told,) = preflight(config(), engine("GPU-1"), gpu_host(tmp_path, calibration_dir=tmp_path)).logged

    assert told.startswith("The calibration of GPU-1 with driver 535.104 does not count for driver ")
    assert silent(preflight(config(), engine("GPU-12"), gpu_host(tmp_path, calibration_dir=tmp_path)))


def test_a_lowered_power_limit_is_advice(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper", uuid="GPU-1", power_limit_w=450.0))

    (advice,) = preflight(config(), engine("GPU-1"), gpu_host(tmp_path)).logged

    assert "450 W, below its default of 700 W" in advice


def test_a_mig_instance_is_left_to_the_meter(scripted_nvml: ScriptedNvmlFactory, tmp_path: Path) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper", mig_slices=[MigSlice("MIG-1", memory_mb=10_000.0)]))

    assert preflight(config(), engine("MIG-1"), gpu_host(tmp_path)).warnings == ()


def test_gpus_without_nvml_are_no_reason_to_refuse(tmp_path: Path) -> None:
    assert silent(preflight(config(), engine("GPU-1"), host(tmp_path)))
