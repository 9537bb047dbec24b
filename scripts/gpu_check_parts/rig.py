"""What a part works with: a board and its driver, loads, meters, an engine; real, or rehearsed on a scripted board."""

from __future__ import annotations

import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gpu_check_parts.wheels import ROOT
from llenergymeasure.core.baseline import BaselineCache
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.calibrate import Load
from llenergymeasure.core.energy.select import BackendName, select_energy_backend
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.driver import Gpu
from llenergymeasure.core.host.host import Host

BALLAST_BYTES = 64 * 1024
"""Smaller pieces of memory than this are left when a board is filled up."""

LIMIT_VARIABLE = "GPU_CHECK_SECONDS"
"""Seconds that the part has, for those that can stop in time."""


@dataclass(frozen=True)
class Models:
    """Names of the models that stand for sizes."""

    tiny: str
    small: str
    large: str


@dataclass(frozen=True)
class Session:
    """A loaded engine and the requests of its experiment."""

    engine: Any
    requests: Sequence[Any]
    config: Any


class Rig(ABC):
    """One board, and everything that is done with it.

    Args:
        directory: The part's own, for files.
    """

    rehearsal: bool
    models: Models
    device: str
    precision: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = SystemClock()
        self.host = Host()
        self.baselines = BaselineCache()
        self._ends_s = time.monotonic() + float(os.environ.get(LIMIT_VARIABLE, "600"))

    @property
    def left_s(self) -> float:
        """Seconds until the part is killed."""
        return self._ends_s - time.monotonic()

    @cached_property
    def gpu(self) -> Gpu:
        """The board under test: the first that CUDA shows."""
        return self.host.visible_gpus()[0]

    @abstractmethod
    def seconds(self, real_s: float, least_s: float = 0.2) -> float:
        """A duration: `real_s` on a board, a small share of it in a rehearsal."""

    @abstractmethod
    def count(self, real: int, rehearsed: int = 1) -> int:
        """A number of rounds or tokens."""

    @abstractmethod
    def load(self) -> Load:
        """Something that keeps the board busy."""

    @abstractmethod
    def heavy_load(self) -> Load:
        """Something that takes it to its power limit."""

    @abstractmethod
    def start_cuda(self) -> None:
        """Make a CUDA context in this process."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the board."""

    @abstractmethod
    def step_timer(self) -> Any:
        """What the engine times its steps with on this device."""

    @abstractmethod
    def torch_memory_mb(self) -> tuple[float, float]:
        """Memory that PyTorch has allocated, now and at most, in MB."""

    @abstractmethod
    def memory_exhausted(self, engine: Any) -> AbstractContextManager[None]:
        """While this is open, the engine cannot get any memory for a batch."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Environment of processes that shall see the same board."""

    def meter(self, name: BackendName = "nvml", poll_interval_ms: int = 100) -> EnergyBackend:
        """A proven meter of the board."""
        options = MeterOptions(poll_interval_ms=poll_interval_ms)
        return select_energy_backend(name, (self.gpu.uuid,), options, self.host)

    def metered(self, meter: EnergyBackend, real_s: float, least_s: float = 0.2) -> EnergyMeasurement:
        """What flows while nothing else is done for so long."""
        handle = meter.start_tracking()
        self.clock.sleep(self.seconds(real_s, least_s))
        return meter.stop_tracking(handle)

    def config(
        self,
        model: str,
        *,
        n: int,
        batch: int,
        input_len: int,
        output_len: int,
        rehearsed: tuple[int, int] = (8, 6),
        **engine: Any,
    ) -> Any:
        """An experiment with forced lengths and without waits.

        Args:
            rehearsed: At most so many tokens in and out in a rehearsal.
            engine: Further fields of the pytorch section.
        """
        from llenergymeasure.config.models import ExperimentConfig

        most_in, most_out = rehearsed
        input_len, output_len = self.count(input_len, most_in), self.count(output_len, most_out)
        fields = {
            "model": model,
            "precision": self.precision,
            "dataset": {"synthetic": {"n": n, "input_len": input_len, "output_len": output_len}},
            "decoder": {"preset": "deterministic", "min_new_tokens": output_len},
            "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0},
            "baseline": {"enabled": False},
            "pytorch": {"device": self.device, "batch_size": batch, **engine},
        }
        return ExperimentConfig.model_validate(fields)

    @contextmanager
    def session(self, config: Any) -> Iterator[Session]:
        """The real engine with `config` loaded."""
        from llenergymeasure.core.backends.protocol import GenerationRequest
        from llenergymeasure.core.backends.registry import get_backend
        from llenergymeasure.datasets.loader import load_prompts

        engine = get_backend("pytorch", clock=self.clock)
        prompts = load_prompts(config, engine.tokenizer(config)).prompts
        length = config.max_output_tokens
        requests = [GenerationRequest(prompt.index, prompt.token_ids, length, length) for prompt in prompts]
        engine.load(config)
        try:
            yield Session(engine, requests, config)
        finally:
            engine.unload()

    def bench(self, config: Any, observer: Callable[[Any], None]) -> Any:
        """The harness's bench, with meters of this board. Idle power is shared among the runs of a process."""
        from llenergymeasure.config.user_config import UserConfig
        from llenergymeasure.core.backends.registry import get_backend
        from llenergymeasure.core.harness import Bench
        from llenergymeasure.core.host.environment import environment_in_background
        from llenergymeasure.core.preflight import run_preflight

        return Bench(
            engine=get_backend("pytorch", clock=self.clock),
            preflight=partial(run_preflight, machine=UserConfig(), meter_name="auto", host=self.host),
            meter_for=lambda devices: self.meter(),
            environment=partial(environment_in_background, self.host),
            baselines=self.baselines,
            clock=self.clock,
            observer=partial(_noted, observer),
        )

    def observe(self, config: Any, observer: Callable[[Any], None] = lambda event: None) -> Any:
        """One experiment through the harness: everything that was seen. Its `window.energy` is to be closed."""
        from llenergymeasure.core.harness import observe

        return observe(config, self.bench(config, observer))

    def record(self, config: Any) -> Any:
        """One experiment through the harness: its record."""
        from llenergymeasure.core.harness import measure

        with tempfile.TemporaryDirectory() as work:
            return measure(config, self.bench(config, lambda event: None), "gpu-check", Path(work)).record


def _noted(observer: Callable[[Any], None], event: Any) -> None:
    """Pass an event on, and leave a line with its time in the part's log: where a slow run spends it."""
    if (step := getattr(event, "step", None)) is not None:
        print(f"{time.monotonic():.2f} {type(event).__name__} {step}", flush=True)
    observer(event)


class RealRig(Rig):
    """The board that is there."""

    rehearsal = False
    models = Models("builtin/tiny-llama", "builtin/llama-1b", "builtin/llama-8b")
    device = "cuda"
    precision = "bf16"

    def seconds(self, real_s: float, least_s: float = 0.2) -> float:
        """As asked."""
        return real_s

    def count(self, real: int, rehearsed: int = 1) -> int:
        """As asked."""
        return real

    def load(self) -> Load:
        """Matrix products, one at a time."""
        from llenergymeasure.core.energy.calibrate import MatmulLoad

        return MatmulLoad(self.gpu.cuda_index or 0)

    def heavy_load(self) -> Load:
        """Matrix products from several threads, so that the board never waits for the host."""
        from gpu_check_parts.loads import Together

        return Together([self.load() for _ in range(3)])

    def start_cuda(self) -> None:
        """The first tensor makes it."""
        import torch

        torch.zeros(1, device="cuda:0")
        torch.cuda.synchronize()

    def synchronize(self) -> None:
        """On the default device."""
        import torch

        torch.cuda.synchronize()

    def step_timer(self) -> Any:
        """CUDA events."""
        import torch

        from llenergymeasure.core.backends.pytorch.generation import DeviceStepTimer

        stream = torch.cuda.current_stream()
        return DeviceStepTimer(self.clock, lambda: torch.cuda.Event(enable_timing=True), stream, torch.cuda.synchronize)

    def torch_memory_mb(self) -> tuple[float, float]:
        """On the default device."""
        import torch

        return torch.cuda.memory_allocated() / 1e6, torch.cuda.max_memory_allocated() / 1e6

    @contextmanager
    def memory_exhausted(self, engine: Any) -> Iterator[None]:
        """All memory is taken, also what the allocator holds in reserve, down to small pieces."""
        import torch

        torch.cuda.empty_cache()
        ballast, size = [], torch.cuda.mem_get_info()[0]
        while size >= BALLAST_BYTES:
            try:
                ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda:0"))
            except torch.cuda.OutOfMemoryError:
                size //= 2
        try:
            yield
        finally:
            ballast.clear()
            torch.cuda.empty_cache()

    def environment(self) -> dict[str, str]:
        """This one's."""
        return with_path()


def with_path() -> dict[str, str]:
    """This process's environment, module path included."""
    import sys

    paths = [str(ROOT / "src"), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "HF_HUB_OFFLINE": "1"}


def open_rig(directory: Path, *, rehearse: bool) -> AbstractContextManager[Rig]:
    """The machine's own board, or a scripted one."""
    if rehearse:
        from gpu_check_parts.rehearsal import rehearsed_rig

        return rehearsed_rig(directory)
    return _real(directory)


@contextmanager
def _real(directory: Path) -> Iterator[Rig]:
    yield RealRig(directory)
