"""Hugging Face transformers as an engine under measurement: `from_pretrained`, then `generate` on padded batches."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.host_memory import peak_rss_mb, start_rss_peak
from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    LoadedModel,
    MemoryStats,
    RequestOutput,
    steps_of_batch,
)
from llenergymeasure.core.backends.pytorch.compiling import CompilationCounter, may_compile
from llenergymeasure.core.backends.pytorch.generation import DeviceStepTimer, HostStepTimer, StepTimer, generate_batch
from llenergymeasure.core.backends.pytorch.loading import LoadedParts, describe_model, gpu_indices, load_parts
from llenergymeasure.core.backends.pytorch.preflight import (
    placement_here,
    planned_devices,
    preflight_problems,
    section_of,
    used_devices,
)
from llenergymeasure.core.backends.shared import OwnEngine, engine_output_logged, seeded
from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.model.memory import MB
from llenergymeasure.exceptions import BackendError

LOGGERS: Final = ("accelerate", "peft", "bitsandbytes")
"""What the libraries behind transformers speak through."""


@dataclass(frozen=True, slots=True)
class _Session:
    batch_size: int
    seed: int
    parts: LoadedParts
    memory: MemoryMeter
    timer: StepTimer
    compilations: CompilationCounter


class PyTorchBackend(OwnEngine[_Session]):
    """One experiment on transformers and PyTorch.

    Every batch is seeded on its own, from the experiment's seed and the batch's first prompt: what was generated before
    (warm-up, other batches) does not change it, and the process's own generators are left as they were.
    """

    name = "pytorch"
    loggers = LOGGERS

    def __init__(self, clock: Clock, model_cache_dir: Path | None = None) -> None:
        super().__init__(clock, model_cache_dir)
        self._matmul_precision_before: str | None = None

    def version(self) -> str:
        """Version of transformers."""
        return metadata.version("transformers")

    def preflight(self, config: ExperimentConfig) -> Sequence[str]:
        """Every reason why `config` cannot run here."""
        with engine_output_logged(*LOGGERS):
            return preflight_problems(config, self._model)

    def plan_devices(self, config: ExperimentConfig) -> tuple[DeviceId, ...]:
        """The devices `load` will use."""
        return planned_devices(section_of(config))

    def load(self, config: ExperimentConfig) -> None:
        """Load weights, adapter and drafter, and compile if asked to."""
        if self._session is not None:
            self.unload()
        section = section_of(config)
        placement = placement_here(section)
        tokenizer = self._model.tokenizer(config)
        try:
            if section.allow_tf32 is not None:
                self._matmul_precision_before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("high" if section.allow_tf32 else "highest")
            with engine_output_logged(*LOGGERS), seeded(config.random_seed):
                parts = load_parts(config, self._model.source(config), tokenizer, placement, self._model.cache_home)
            self._session = _Session(
                batch_size=section.batch,
                seed=config.random_seed,
                parts=parts,
                memory=MemoryMeter(parts.model),
                timer=_timer_for(parts.model.device, self._clock),
                compilations=CompilationCounter(parts.model),
            )
            self.synchronize()
        except BaseException:
            self.unload()
            raise

    def devices(self) -> tuple[DeviceId, ...]:
        """The devices that hold the weights."""
        return used_devices(gpu_indices(self.parts.model.parameters()))

    @property
    def parts(self) -> LoadedParts:
        """The loaded model and its companions, to look at."""
        return self._loaded().parts

    @property
    def batch_size(self) -> int | None:
        """`pytorch.batch_size` of the loaded experiment, 1 by default."""
        return self._session.batch_size if self._session is not None else 1

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for `requests`, `batch_size` at a time."""
        session = self._loaded()
        outputs: list[RequestOutput] = []
        steps = StepLog()
        before = session.compilations.count
        with engine_output_logged(*LOGGERS):
            for start in range(0, len(requests), session.batch_size):
                batch = _generate_batch(session, requests[start : start + session.batch_size])
                outputs += batch
                steps.extend(steps_of_batch(batch) or StepLog())
        return GenerationOutput(tuple(outputs), session.compilations.count - before, steps or None)

    def synchronize(self) -> None:
        """Wait for every GPU that holds a part of the model."""
        for index in self._session.memory.gpu_indices if self._session is not None else ():
            torch.cuda.synchronize(index)

    def reset_peak_memory(self) -> None:
        """Start a new peak."""
        self._loaded().memory.reset_peak()

    def memory(self) -> MemoryStats:
        """Memory since the last reset; on the CPU, of the whole process."""
        return self._loaded().memory.stats()

    def describe(self) -> LoadedModel:
        """What was loaded, read back from model, adapter, drafter and generation config."""
        session = self._loaded()
        return describe_model(session.parts, session.batch_size)

    def unload(self) -> None:
        """Free the model and its memory."""
        compiled = self._session is not None and may_compile(self._session.parts.model)
        if self._session is not None:
            self._session.compilations.stop()
        self._session = None
        if self._matmul_precision_before is not None:
            torch.set_float32_matmul_precision(self._matmul_precision_before)
            self._matmul_precision_before = None
        gc.collect()
        if compiled:
            torch.compiler.reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _timer_for(device: torch.device, clock: Clock) -> StepTimer:
    if device.type != "cuda":
        return HostStepTimer(clock)
    return DeviceStepTimer(
        clock,
        new_event=lambda: torch.cuda.Event(enable_timing=True),
        stream=torch.cuda.current_stream(device),
        synchronize=lambda: torch.cuda.synchronize(device),
    )


def _generate_batch(session: _Session, batch: Sequence[GenerationRequest]) -> list[RequestOutput]:
    """One batch, with what transformers and PyTorch raise turned into a `BackendError`."""
    parts = session.parts
    try:
        with seeded(session.seed, stream=batch[0].index):
            generated = generate_batch(parts.model, batch, parts.decoding, session.timer)
    except BackendError:
        raise
    except Exception as error:  # a hundred architectures, and remote code
        raise BackendError(_explain(error, batch)) from error
    session.memory.note_cache(generated.cache_bytes)
    return generated.outputs


def _explain(error: Exception, batch: Sequence[GenerationRequest]) -> str:
    is_runtime = isinstance(error, RuntimeError)
    is_cpu_full = is_runtime and any(text in str(error) for text in ("not enough memory", "can't allocate memory"))
    if not is_cpu_full and not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        kind = "failed to generate" if is_runtime else f"cannot generate as asked: {type(error).__name__}"
        return f"transformers {kind}: {error}"
    longest = max(len(request.token_ids) for request in batch)
    output = max(request.max_new_tokens for request in batch)
    return (
        f"out of memory while generating for a batch of {len(batch)} prompts of up to {longest} tokens with up to "
        f"{output} new ones. Lower pytorch.batch_size, max_input_tokens or max_output_tokens."
    )


class MemoryMeter:
    """Peak memory, weights and key-value cache of one loaded model."""

    def __init__(self, model: PreTrainedModel) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.gpu_indices = gpu_indices(tensors)
        self._model_mb = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MB
        self._peak_is_ours = False
        self._largest_cache_bytes = 0

    def reset_peak(self) -> None:
        """Start a new peak; on the CPU only where the kernel lets a process do that."""
        self._largest_cache_bytes = 0
        for index in self.gpu_indices:
            torch.cuda.reset_peak_memory_stats(index)
        if not self.gpu_indices:
            self._peak_is_ours = start_rss_peak()

    def note_cache(self, cache_bytes: int | None) -> None:
        """Remember what the cache of a batch held in the end."""
        self._largest_cache_bytes = max(self._largest_cache_bytes, cache_bytes or 0)

    def stats(self) -> MemoryStats:
        """The figures since the last reset; on the CPU, the peak is the process's resident memory."""
        peak_mb = peak_rss_mb() if self._peak_is_ours else None
        if self.gpu_indices:
            peak_mb = float(sum(torch.cuda.max_memory_allocated(index) for index in self.gpu_indices)) / MB
        return MemoryStats(peak_mb, self._model_mb, self._largest_cache_bytes / MB or None)
