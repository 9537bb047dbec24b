"""Where an experiment would run, told without an engine: for headers and previews, before anything slow is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.gpu.driver import GpuDriver, GpuDriverError
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import order_is_certain, visible_gpus
from llenergymeasure.core.host.environment import read_cpu
from llenergymeasure.domain.environment import CPUEnvironment


def device_title(
    config: ExperimentConfig,
    environ: Mapping[str, str],
    nvml_opener: Callable[[], GpuDriver] = open_nvml,
    cpu_reader: Callable[[], CPUEnvironment] = read_cpu,
) -> str | None:
    """What the run's devices are called, e.g. `2 × NVIDIA A100-SXM4-80GB`.

    `None` where there is none for the run, and where CUDA alone knows which of several unlike boards it will be.

    Args:
        config: The experiment.
        environ: Environment of the run.
        nvml_opener: Gives the machine's NVML or raises `GpuDriverError`.
        cpu_reader: Describes the processor.
    """
    device = config.backend_config.device_choice
    if device != "cpu":
        try:
            nvml = nvml_opener()
            names = [gpu.name for gpu in visible_gpus(environ, nvml)]
            if names:
                used = names[: config.backend_config.gpu_count(len(names))]
                return _counted(used) if order_is_certain(environ, nvml) else None
        except GpuDriverError:
            pass  # no driver, so no GPU
    return (cpu_reader().model or "the CPU") if device in ("cpu", "auto") else None


def _counted(names: Sequence[str]) -> str:
    return " + ".join(f"{count} × {name}" if count > 1 else name for name, count in Counter(names).items())
