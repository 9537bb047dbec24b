"""TensorRT-LLM as an engine under measurement: its `LLM`, which batches continuously by itself."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tensorrt_llm

from llenergymeasure.config.models import DecoderConfig, ExperimentConfig
from llenergymeasure.core.backends.checks import check_arrived, check_request
from llenergymeasure.core.backends.place import EnginePlace
from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    LoadedModel,
    MemoryStats,
    Specialisation,
    TokenPasses,
)
from llenergymeasure.core.backends.shared import (
    OwnLLM,
    engine_output_logged,
    eos_token_ids,
    gpu_uuids,
    local_directory,
    seeded,
    uuids_by_nvml,
)
from llenergymeasure.core.backends.tensorrt.answers import ask, generation_output
from llenergymeasure.core.backends.tensorrt.engine import (
    build_arguments,
    build_settings,
    cuts_prompts,
    engine_class,
    has_salts,
    needs_build,
    read_back,
    run_arguments,
    section_of,
)
from llenergymeasure.core.backends.tensorrt.engine_cache import cache_root, cached_engine, files_identity
from llenergymeasure.core.backends.tensorrt.liveness import Sentinel, WorkerEndedError, Workers
from llenergymeasure.core.backends.tensorrt.memory import kv_cache_mb
from llenergymeasure.core.backends.tensorrt.own_meter import OwnMeter, Reading
from llenergymeasure.core.backends.tensorrt.preflight import check_settings, planned_devices, preflight_problems
from llenergymeasure.core.backends.tensorrt.sampling import sampling_parameters
from llenergymeasure.core.gpu.driver import DeviceId, GpuDriverError, all_boards
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.model.context import context_length
from llenergymeasure.core.model.parameters import count_from_config
from llenergymeasure.core.model.source import ModelSource, first_line
from llenergymeasure.exceptions import BackendError

LOGGERS: Final = ("TRT-LLM", "tensorrt_llm", "torch", "mpi4py")
"""What TensorRT-LLM and the libraries behind it speak through."""


@dataclass(frozen=True, slots=True)
class _Session:
    """A loaded engine, and what every request needs to know."""

    llm: Any
    source: ModelSource
    config: ExperimentConfig
    devices: tuple[DeviceId, ...]
    ends: tuple[int, ...]
    vocab_size: int
    context_length: int | None
    salted: bool
    workers: Workers
    own_meter: OwnMeter

    @property
    def decoder(self) -> DecoderConfig:
        """How tokens are chosen."""
        return self.config.decoder

    def salt(self) -> dict[str, str]:
        """A new salt, with which nothing that earlier calls left in the cache is found again."""
        return {"cache_salt": uuid.uuid4().hex} if self.salted else {}


class TensorRTBackend(OwnLLM[_Session]):
    """One experiment on TensorRT-LLM, whose workers are processes of their own."""

    name = "tensorrt"
    loggers = LOGGERS
    _sentinel: Sentinel | None = None

    def version(self) -> str:
        """Version of TensorRT-LLM."""
        return str(tensorrt_llm.__version__)

    def preflight(self, config: ExperimentConfig) -> Sequence[str]:
        """Every reason why `config` cannot run here."""
        with engine_output_logged(*LOGGERS):
            return preflight_problems(config, _gpus(), self.version(), self._model)

    def plan_devices(self, config: ExperimentConfig) -> tuple[DeviceId, ...]:
        """The devices `load` will use."""
        return planned_devices(config, _gpus())

    def load(self, config: ExperimentConfig) -> None:
        """Start the engine and its workers; an engine that is built ahead, and is not kept from before, is built."""
        if self._session is not None:
            self.unload()
        check_settings(config, self.version())
        devices, source = self.plan_devices(config), self._model.source(config)
        place = self._place = EnginePlace("TensorRT-LLM")
        try:
            watch = self._sentinel = Sentinel()
            with engine_output_logged(*LOGGERS), place.taken(), seeded(config.random_seed), watch.marking():
                model = self._runnable(config, source, devices)
                llm = engine_class(config)(**run_arguments(config, model))
                self._session = self._opened(llm, config, source, devices)
            check_arrived("TensorRT-LLM", section_of(config), self._settings())
        except BackendError:
            self.unload()
            raise
        except Exception as error:  # TensorRT-LLM's own checks, a hundred architectures, and what its workers die of
            told = place.cause() or first_line(error)
            self.unload()
            raise BackendError(f"model: {config.model} cannot be loaded by TensorRT-LLM: {told}") from error

    def devices(self) -> tuple[DeviceId, ...]:
        """The devices of the workers: one each, in CUDA's order."""
        return self._loaded().devices

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for all `requests` at once; what earlier calls left in the cache of prefixes is not used."""
        session = self._loaded()
        for request in requests:
            check_request(request, session.context_length, session.vocab_size)
        prompts = [
            (
                list(request.token_ids),
                sampling_parameters(request, session.decoder, session.ends, session.config.random_seed),
            )
            for request in requests
        ]
        with engine_output_logged(*LOGGERS):
            try:
                answers = ask(session.llm, prompts, session.salt(), self._clock, session.workers)
            except Exception as error:  # whatever its workers die of
                raise BackendError(_explain_generating(error, self._place, requests)) from error
        return generation_output(requests, answers, session.ends, self._clock, cuts_prompts(session.llm.args))

    def counting_energy(self) -> AbstractContextManager[Reading]:
        """By the meter that TensorRT-LLM brings."""
        return self._loaded().own_meter.counting()

    def synchronize(self) -> None:
        """Nothing to wait for: the last token is told when its step is over, and the workers cannot be asked more."""

    def reset_peak_memory(self) -> None:
        """Nothing to start: the workers do not tell their peak."""

    def memory(self) -> MemoryStats:
        """The key-value cache, by the tokens that the engine has reserved room for; the workers tell nothing else."""
        session = self._loaded()
        return MemoryStats(kv_cache_mb=kv_cache_mb(session.llm, session.source.config))

    def describe(self) -> LoadedModel:
        """What was loaded, read back from the engine's own arguments."""
        session = self._loaded()
        drafting = section_of(session.config).speculative_config
        drafter = None if drafting is None else drafting.speculative_model or drafting.decoding_type
        return LoadedModel(
            settings=self._settings(),
            revision=session.source.revision,
            parameters=count_from_config(session.source.config),
            passes=TokenPasses(drafted_by=drafter),
            context_length=session.context_length,
            device_names=_names(session.devices),
            specialisation=Specialisation(rows=session.llm.args.max_batch_size or section_of(session.config).batch),
        )

    def unload(self) -> None:
        """End the engine and its workers."""
        session, self._session = self._session, None
        if session is not None:
            with engine_output_logged(*LOGGERS):
                session.workers.shut_down(session.llm.shutdown)
                del session
                gc.collect()
        if self._sentinel is not None:
            self._sentinel.close()
            self._sentinel = None
        self._leave_place()

    def _runnable(self, config: ExperimentConfig, source: ModelSource, devices: Sequence[DeviceId]) -> Path:
        """What the engine gets: the checkpoint, or the engine that was built from it."""
        path = section_of(config).engine_path
        if path is not None:
            return Path(path)
        checkpoint = local_directory(source)
        if not needs_build(config):
            return checkpoint
        weights = source.revision or files_identity(checkpoint)
        key = {
            "model": {"place": source.location, "weights": weights},
            "settings": build_settings(config),
            "gpus": _names(devices),
            "tensorrt_llm": self.version(),
        }
        return cached_engine(cache_root(), key, lambda into: _build(config, checkpoint, into))

    def _opened(
        self, llm: Any, config: ExperimentConfig, source: ModelSource, devices: tuple[DeviceId, ...]
    ) -> _Session:
        tokenizer = self._model.tokenizer(config)
        vocabulary = int(source.config.get("vocab_size") or len(tokenizer))
        limits = [length for length in (llm.args.max_seq_len, context_length(source.config)) if length is not None]
        return _Session(
            llm=llm,
            source=source,
            config=config,
            devices=devices,
            ends=eos_token_ids(source, tokenizer, vocabulary),
            vocab_size=vocabulary,
            context_length=min(limits, default=None),
            salted=has_salts(type(llm)),
            workers=Workers(),
            own_meter=OwnMeter(len(devices)),
        )

    def _settings(self) -> Mapping[str, Any]:
        session = self._loaded()
        engine = "built ahead" if needs_build(session.config) else "PyTorch-based"
        return {**read_back(session.llm.args, section_of(session.config)), "tensorrt.engine": engine}


def _gpus() -> tuple[DeviceId, ...]:
    """The GPUs that CUDA shows to this process, and so to the workers that it starts."""
    known = uuids_by_nvml()
    return gpu_uuids() if known is None else known


def _names(devices: Sequence[DeviceId]) -> tuple[str, ...]:
    """Marketing names of the devices; none where NVML does not tell."""
    try:
        names = {gpu.uuid: gpu.name for board in all_boards(open_nvml()) for gpu in (board, *board.instances)}
    except GpuDriverError:
        return ()
    return tuple(names[device] for device in devices if device in names)


def _build(config: ExperimentConfig, checkpoint: Path, into: Path) -> None:
    """Build an engine of the checkpoint and save it; the process that built it ends before another one runs it."""
    builder = engine_class(config)(**build_arguments(config, checkpoint))
    try:
        builder.save(str(into))
    finally:
        builder.shutdown()


def _explain_generating(error: Exception, place: EnginePlace | None, requests: Sequence[GenerationRequest]) -> str:
    cause = place.cause() if place is not None else None
    told = str(error) if isinstance(error, WorkerEndedError) else first_line(error)
    told = told if cause is None else f"{told}; its workers said: {cause}"
    if "OutOfMemory" in told or "out of memory" in told or isinstance(error, MemoryError):
        return (
            f"out of memory while generating for {len(requests)} prompts ({told}). Lower "
            "tensorrt.kv_cache_config.free_gpu_memory_fraction, max_batch_size or max_num_tokens."
        )
    return f"TensorRT-LLM failed to generate: {told}"
