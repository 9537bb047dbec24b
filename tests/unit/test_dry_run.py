"""A dry run tells what an experiment would do and need, and does none of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.nvml.scripted import ScriptedGpu
from tests.nvml.waveform import constant

from llenergymeasure.cli.dry_run import (
    DryRunReport,
    dry_run_experiment,
    known_waits,
    meter_here,
    render_dry_run,
)
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.gpu.driver import DriverMissingError, GpuDriver
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.host.host import Host
from llenergymeasure.exceptions import BackendError

if TYPE_CHECKING:
    from tests.nvml.fixtures import ScriptedNvmlFactory


def no_driver() -> GpuDriver:
    raise DriverMissingError("no driver")


def no_engine(name: str) -> Mapping[str, str]:
    raise BackendError(f"the {name} backend needs torch>=2.4 (none installed).")


def config(**fields: Any) -> ExperimentConfig:
    return ExperimentConfig(**{"model": "somebody/some-model", "dataset": {"synthetic": {"n": 10}}, **fields})


def dry_run(case: ExperimentConfig, machine: UserConfig | None = None, **more: Any) -> DryRunReport:
    replaced = {name: more.pop(name) for name in ("fetch_config", "find_meter") if name in more}
    host = Host(more.pop("environ", {"HF_HUB_OFFLINE": "1"}), more.pop("open_driver", no_driver))
    versions_of = more.pop("versions_of", no_engine)
    return dry_run_experiment(case, machine or UserConfig(), host, versions_of=versions_of, **replaced)


@pytest.fixture
def llama_1b(tmp_path: Path) -> str:
    """One billion weights in one file's header: 2 GB in bf16; a token's keys and values are 2 × 16 × 512 × 2 bytes."""
    directory = tmp_path / "llama-1b"
    directory.mkdir()
    shape = {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    }
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1000, 1_000_000], "data_offsets": [0, 0]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(directory)


def test_it_works_without_gpu_driver_engine_and_model() -> None:
    text = render_dry_run(dry_run(config()))

    assert "the pytorch backend needs torch>=2.4" in text
    assert "pass --device cpu" in text
    assert "Nothing was run." in text


def test_memory_is_the_sum_of_its_parts_and_compared_with_the_gpu(
    scripted_nvml: ScriptedNvmlFactory, llama_1b: str
) -> None:
    scripted_nvml.play(ScriptedGpu.of("ada", name="NVIDIA L4", memory_total_mb=24_000, memory_used_mb=1_000))
    case = config(model=llama_1b, dataset={"synthetic": {"n": 8, "input_len": 896}}, pytorch={"batch_size": 8})

    report = dry_run(case, open_driver=open_nvml)

    assert report.vram.weights_mb == pytest.approx(2000.0)
    assert report.vram.kv_cache_mb == pytest.approx(2 * 16 * 512 * 2 * 8 * 1024 / 1e6)
    assert "about 2.6 GB: weights 2.0 GB, key-value cache 0.3 GB" in render_dry_run(report)
    assert "fits in the 23.0 GB free on NVIDIA L4" in render_dry_run(report)


def test_a_model_that_does_not_fit_is_told(scripted_nvml: ScriptedNvmlFactory, llama_1b: str) -> None:
    scripted_nvml.play(ScriptedGpu.of("ada", memory_total_mb=2_000, memory_used_mb=0))

    assert "DOES NOT FIT in the 2.0 GB free" in render_dry_run(dry_run(config(model=llama_1b), open_driver=open_nvml))


def test_unknown_memory_is_called_unknown() -> None:
    text = render_dry_run(dry_run(config()))

    assert "somebody/some-model is not on this machine yet" in text
    assert "about" not in text


@pytest.mark.parametrize(
    ("section", "seen"),
    [
        ({}, 1),
        ({"pytorch": {"device_map": "auto"}}, 3),
        ({"pytorch": {"num_processes": 2}}, 2),
        ({"backend": "vllm", "vllm": {"tensor_parallel_size": 2}}, 2),
        ({"backend": "tensorrt", "tensorrt": {"tp_size": 3}}, 3),
        ({"pytorch": {"device": "cpu"}}, 0),
    ],
)
def test_the_gpus_are_those_the_config_asks_for(
    scripted_nvml: ScriptedNvmlFactory, section: dict[str, Any], seen: int
) -> None:
    scripted_nvml.play(*(ScriptedGpu.of("hopper") for _ in range(3)))

    assert len(dry_run(config(**section), open_driver=open_nvml).gpus) == seen


def test_too_few_gpus_are_told(scripted_nvml: ScriptedNvmlFactory) -> None:
    scripted_nvml.play(ScriptedGpu.of("hopper"))

    report = dry_run(config(backend="vllm", vllm={"tensor_parallel_size": 4}), open_driver=open_nvml)

    assert report.device_note == "the config asks for 4 GPUs, and this machine shows 1"


def test_tokens_are_bounds() -> None:
    case = config(dataset={"synthetic": {"n": 40, "input_len": 256, "output_len": 64}})

    text = render_dry_run(dry_run(case))

    assert "at most 10,240 in (40 × 256) and 2,560 out (40 × 64)" in text


def test_waiting_is_what_the_config_says() -> None:
    case = config(measurement={"min_duration_seconds": 20.0})

    assert dict(known_waits(case)) == {"baseline": 30.0, "thermal floor": 60.0, "window": 20.0}
    assert "at least 1 m 50 s of waiting" in render_dry_run(dry_run(case))


def test_what_is_switched_off_is_not_waited_for() -> None:
    off = config(baseline={"enabled": False}, warmup={"enabled": False})
    no_energy = config(energy={"backend": None}, warmup={"thermal_floor_seconds": 0.0})

    assert list(known_waits(off)) == []
    assert list(known_waits(no_energy)) == []
    assert "not measured" in render_dry_run(dry_run(no_energy))


def test_the_machines_energy_backend_counts_where_the_experiment_leaves_it_open() -> None:
    machine = UserConfig.model_validate({"measurement": {"energy_backend": "zeus"}})

    assert dry_run(config(), machine).energy_backend == "zeus"
    assert dry_run(config(energy={"backend": "nvml"}), machine).energy_backend == "nvml"


def test_the_meter_that_would_measure_is_named_with_a_reading(scripted_nvml: ScriptedNvmlFactory) -> None:
    scripted_nvml.play(ScriptedGpu.of("ada", waveform=constant(120.0)))

    text = render_dry_run(dry_run(config(energy={"backend": "nvml"}), open_driver=open_nvml, find_meter=meter_here))

    assert re.search(r"\n  Energy +nvml: .*1[12]\d\.\d W", text)


def test_no_meter_is_looked_for_where_no_device_is_known_or_none_is_wanted() -> None:
    def find(*asked: object) -> str:
        raise AssertionError(asked)

    assert dry_run(config(), find_meter=find).meter is None
    assert dry_run(config(pytorch={"device": "cpu"}, energy={"backend": None}), find_meter=find).meter is None


def test_a_meter_that_does_not_suit_the_device_is_not_passed_off_as_one() -> None:
    report = dry_run(config(pytorch={"device": "cpu"}, energy={"backend": "nvml"}), find_meter=meter_here)

    assert report.meter == "nvml: does not work here"


def test_prompts_that_cannot_be_had_are_told(tmp_path: Path) -> None:
    data = tmp_path / "two.jsonl"
    data.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')

    assert "n = 3 prompts were asked for, it has 2" in dry_run(config(dataset=str(data), n=3)).prompts
    assert dry_run(config(dataset=str(data), n=2)).prompts == f"2 of {data}"


def test_a_data_set_on_the_hub_is_not_looked_up_but_its_name_is_checked(tmp_path: Path) -> None:
    assert "not looked up" in dry_run(config(dataset="hf:nobody/nothing", n=5)).prompts
    assert "not of the form" in dry_run(config(dataset="hf:no such/thing", n=5)).prompts
    assert "no such directory" in dry_run(config(dataset=f"hf:{tmp_path}/gone", n=5)).prompts


def test_the_memory_of_a_run_on_the_cpu_is_not_called_a_gpus() -> None:
    text = render_dry_run(dry_run(config(model="builtin/tiny-llama", pytorch={"device": "cpu"})))

    assert "\n  Memory       about" in text
    assert "GPU memory" not in text


def test_the_configuration_of_a_model_that_is_not_here_comes_from_the_hub(llama_1b: str) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(model: str, revision: str | None, environ: Mapping[str, str]) -> Mapping[str, Any]:
        asked.append((model, revision))
        here = json.loads(Path(llama_1b, "config.json").read_text())
        return {**here, "vocab_size": 32_000, "intermediate_size": 8192}

    report = dry_run(config(revision="v1"), fetch_config=fetch)

    # per layer 2 × 2048² + 2 × 2048 × 512 + 3 × 2048 × 8192 weights, and 2 × 32,000 × 2048 for the vocabulary
    assert report.vram.weights_mb == pytest.approx(2 * (16 * 60.8e6 + 131.1e6) / 1e6, rel=0.01)
    assert report.vram.total_mb is not None
    dry_run(config(model=llama_1b), fetch_config=fetch)
    assert asked == [("somebody/some-model", "v1")]  # not for the one that is here


def test_why_the_hub_did_not_help_is_told() -> None:
    text = render_dry_run(dry_run(config()))

    assert "somebody/some-model is not on this machine yet, and HF_HUB_OFFLINE forbids asking the Hub" in text


def test_an_engine_in_an_image_is_told_by_it_and_not_looked_for_here() -> None:
    machine = UserConfig.model_validate({"runners": {"pytorch": "docker:image:1"}})
    case = ExperimentConfig.model_validate({"model": "gpt2", "pytorch": {"device": "cpu"}})
    assert dry_run(case, machine).engine == "in docker:image:1"
