"""The device that a header names, told without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fake_nvml import FakeGpu, FakeNvml
from llenergymeasure.cli.run import device_title
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.gpu.driver import DriverMissingError, GpuDriver
from llenergymeasure.core.host.host import Host

A100 = "NVIDIA A100-SXM4-80GB"
FOUR_A100 = FakeNvml(*(FakeGpu(f"GPU-{index}", A100) for index in range(4)))
UNLIKE = FakeNvml(FakeGpu("GPU-0", A100), FakeGpu("GPU-1", "NVIDIA T4"))


EPYC = Path(__file__).parents[1] / "data" / "epyc"
"""Root of a file system that knows of a processor."""


def no_driver() -> GpuDriver:
    raise DriverMissingError("no driver")


def title(nvml: FakeNvml | None, environ: Mapping[str, str] | None = None, **fields: Any) -> str | None:
    driver: GpuDriver | None = nvml  # type: ignore[assignment]
    host = Host(environ or {}, no_driver if driver is None else lambda: driver, root=EPYC)
    return device_title(ExperimentConfig.model_validate({"model": "gpt2", **fields}), UserConfig(), host)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, A100),
        ({"pytorch": {"device": "auto"}}, A100),
        ({"pytorch": {"num_processes": 2}}, f"2 × {A100}"),
        ({"pytorch": {"device_map": "auto"}}, f"4 × {A100}"),
        ({"backend": "vllm", "vllm": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}}, f"4 × {A100}"),
        ({"backend": "tensorrt", "tensorrt": {"tp_size": 2}}, f"2 × {A100}"),
        ({"pytorch": {"device": "cpu"}}, "AMD EPYC 9654"),
    ],
)
def test_as_many_devices_are_named_as_the_config_asks_for(fields: dict[str, Any], said: str) -> None:
    assert title(FOUR_A100, **fields) == said


@pytest.mark.parametrize(
    ("fields", "said"), [({}, None), ({"pytorch": {"device": "auto"}}, "AMD EPYC 9654"), ({"backend": "vllm"}, None)]
)
def test_without_a_gpu_the_processor_is_named_where_it_will_do(fields: dict[str, Any], said: str | None) -> None:
    assert title(None, **fields) == said
    assert title(FOUR_A100, {"CUDA_VISIBLE_DEVICES": ""}, **fields) == said


def test_of_unlike_boards_one_is_named_only_where_cudas_order_is_known() -> None:
    assert title(UNLIKE) is None
    assert title(UNLIKE, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == A100
    assert title(UNLIKE, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}) == "NVIDIA T4"
    both = {"pytorch": {"device_map": "auto"}}
    assert title(UNLIKE, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, **both) == f"{A100} + NVIDIA T4"
