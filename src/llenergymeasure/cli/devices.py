"""Where an experiment would run, told without an engine: for headers and previews, before anything slow is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.gpu.driver import GpuDriverError
from llenergymeasure.core.gpu.visible import order_is_certain, visible_gpus
from llenergymeasure.core.host.environment import read_cpu
from llenergymeasure.core.host.host import Host


def device_title(config: ExperimentConfig, host: Host) -> str | None:
    """What the run's devices are called, e.g. `2 × NVIDIA A100-SXM4-80GB`.

    `None` where there is none for the run, and where CUDA alone knows which of several unlike boards it will be.
    """
    device = config.pytorch.device if config.pytorch is not None else None
    if device != "cpu":
        try:
            driver = host.open_driver()
            names = [gpu.name for gpu in visible_gpus(host.environ, driver)]
            if names:
                certain = order_is_certain(host.environ, driver)
                return _counted(names[: gpu_count(config, len(names))]) if certain else None
        except GpuDriverError:
            pass  # no driver, so no GPU
    return (read_cpu(host.root).model or "the CPU") if device in ("cpu", "auto") else None


def gpu_count(config: ExperimentConfig, available: int) -> int:
    """How many GPUs the config asks for; some settings take all that are `available`."""
    if config.pytorch is not None:
        return available if config.pytorch.device_map is not None else config.pytorch.num_processes or 1
    if config.vllm is not None:
        return (config.vllm.tensor_parallel_size or 1) * (config.vllm.pipeline_parallel_size or 1)
    if config.tensorrt is not None:
        return (config.tensorrt.tp_size or 1) * (config.tensorrt.pp_size or 1)
    return 1


def _counted(names: Sequence[str]) -> str:
    return " + ".join(f"{count} × {name}" if count > 1 else name for name, count in Counter(names).items())
