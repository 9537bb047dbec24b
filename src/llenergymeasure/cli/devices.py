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
    device = config.backend_config.device_choice
    if device != "cpu":
        try:
            driver = host.open_driver()
            names = [gpu.name for gpu in visible_gpus(host.environ, driver)]
            if names:
                certain = order_is_certain(host.environ, driver)
                return _counted(names[: config.backend_config.gpu_count(len(names))]) if certain else None
        except GpuDriverError:
            pass  # no driver, so no GPU
    return (read_cpu(host.root).model or "the CPU") if device in ("cpu", "auto") else None


def _counted(names: Sequence[str]) -> str:
    return " + ".join(f"{count} × {name}" if count > 1 else name for name, count in Counter(names).items())
