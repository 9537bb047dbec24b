"""vLLM as an engine under measurement: its offline `LLM`, which batches continuously by itself."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
import vllm
from transformers import PreTrainedTokenizerBase
from vllm import LLM
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from llenergymeasure.config.models import DecoderConfig, ExperimentConfig
from llenergymeasure.core.backends.checks import check_arrived, check_request
from llenergymeasure.core.backends.place import EnginePlace
from llenergymeasure.core.backends.protocol import (
    FinishReason,
    GenerationOutput,
    GenerationRequest,
    LoadedModel,
    MemoryStats,
    RequestOutput,
    Specialisation,
    TokenPasses,
)
from llenergymeasure.core.backends.shared import (
    OwnLLM,
    engine_output_logged,
    ids_or_tokenizers,
    seeded,
)
from llenergymeasure.core.backends.vllm.adapters import check_adapter, lora_request
from llenergymeasure.core.backends.vllm.engine import (
    engine_arguments,
    in_our_words,
    read_back,
    section_of,
    told_by_vllm,
)
from llenergymeasure.core.backends.vllm.listening import RequestTimes, StepListener, listening
from llenergymeasure.core.backends.vllm.liveness import cores_end_with_this_process, watch_core
from llenergymeasure.core.backends.vllm.preflight import (
    check_passthrough,
    planned_devices,
    platform_here,
    preflight_problems,
)
from llenergymeasure.core.backends.vllm.sampling import sampling_parameters
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.model.parameters import count_from_config
from llenergymeasure.core.model.source import ModelSource, find_adapter
from llenergymeasure.exceptions import BackendError

LOGGERS: Final = ("vllm", "torch", "gloo")
"""What vLLM and the libraries behind it speak through."""

SOCKETS_VARIABLE: Final = "VLLM_RPC_BASE_PATH"
"""Names the directory of vLLM's sockets."""

ANNOUNCEMENTS: Final = ("Engine core initialization failed", "EngineDeadError", "WorkerProc initialization failed")
"""Errors that only tell of another one."""

FINISH_REASONS: Final[dict[str | None, FinishReason]] = {"stop": "eos", "length": "length"}
"""Ours for vLLM's; any other one means that it gave the request up."""


@dataclass(frozen=True, slots=True)
class _Session:
    """A loaded engine, and what every request needs to know."""

    llm: LLM
    source: ModelSource
    decoder: DecoderConfig
    seed: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    lora: LoRARequest | None

    @property
    def engine(self) -> Any:
        """The `LLMEngine` behind the `LLM`."""
        return self.llm.llm_engine

    def ask_workers(self, method: str) -> list[Any]:
        """Call a method of `WorkerFigures` on every worker."""
        return list(self.llm.collective_rpc(method))


class VLLMBackend(OwnLLM[_Session]):
    """One experiment on vLLM.

    The engine core runs in a process of its own unless `VLLM_ENABLE_V1_MULTIPROCESSING=0`, as everywhere in vLLM.
    """

    name = "vllm"
    loggers = LOGGERS

    def version(self) -> str:
        """Version of vLLM."""
        return str(vllm.__version__)

    def preflight(self, config: ExperimentConfig) -> Sequence[str]:
        """Every reason why `config` cannot run here."""
        with engine_output_logged(*LOGGERS):
            return preflight_problems(config, platform_here(), self.version(), self._model)

    def plan_devices(self, config: ExperimentConfig) -> tuple[DeviceId, ...]:
        """The devices `load` will use."""
        return planned_devices(config, platform_here(), self.version())

    def load(self, config: ExperimentConfig) -> None:
        """Start the engine and its workers; weights are loaded and everything is compiled then."""
        if self._session is not None:
            self.unload()
        check_passthrough(config)
        arguments = engine_arguments(config, self._model.source(config), self._model.cache_home)
        lora = self._adapter(config)
        place = self._place = EnginePlace("vLLM", (SOCKETS_VARIABLE,), ANNOUNCEMENTS)
        try:
            with engine_output_logged(*LOGGERS), place.taken(), seeded(config.random_seed):
                self._session = self._start(config, arguments, lora)
            check_arrived("vLLM", section_of(config), self._settings())
        except BackendError:
            self.unload()
            raise
        except Exception as error:  # vLLM's own checks, a hundred architectures, and what its processes die of
            told = _explain_loading(error, place, config)
            self.unload()
            raise BackendError(told) from error

    def devices(self) -> tuple[DeviceId, ...]:
        """The devices of the workers."""
        return tuple(dict.fromkeys(device for device, _ in self._loaded().ask_workers("llem_device")))

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for all `requests` at once; what earlier calls left in the cache of prefixes is forgotten first."""
        session = self._loaded()
        for request in requests:
            check_request(request, session.engine.model_config.max_model_len, session.vocab_size)
        with engine_output_logged(*LOGGERS):
            listener = StepListener(self._clock)
            try:
                _forget_prefixes(session.engine)
                finished = _run(session, requests, listener)
            except Exception as error:
                raise BackendError(_explain_generating(error, self._place, requests)) from error
        outputs = (_request_output(*pair, listener) for pair in zip(requests, finished, strict=True))
        return GenerationOutput(tuple(outputs), steps=listener.steps)

    def synchronize(self) -> None:
        """Wait for every worker's device."""
        if self._session is not None:
            self._session.ask_workers("llem_synchronize")

    def reset_peak_memory(self) -> None:
        """Start a new peak in every worker."""
        self._loaded().ask_workers("llem_start_peak")

    def memory(self) -> MemoryStats:
        """Memory of all workers; the key-value cache is what they reserve."""
        figures = self._loaded().ask_workers("llem_memory")

        def total(name: str) -> float | None:
            known = [figure[name] for figure in figures if figure[name] is not None]
            return sum(known) or None if len(known) == len(figures) else None

        return MemoryStats(total("peak_mb"), total("model_mb"), total("kv_cache_mb"))

    def describe(self) -> LoadedModel:
        """What was loaded, read back from the engine's own config and from its workers."""
        session = self._loaded()
        found = session.engine.vllm_config
        names = tuple(name for _, name in session.ask_workers("llem_device"))
        drafting = found.speculative_config
        return LoadedModel(
            settings=self._settings(),
            revision=session.source.revision,
            parameters=count_from_config(session.source.config),
            passes=TokenPasses(drafted_by=None if drafting is None else drafting.model or drafting.method),
            context_length=found.model_config.max_model_len,
            device_names=names,
            specialisation=Specialisation(rows=found.scheduler_config.max_num_seqs),
        )

    def _start(self, config: ExperimentConfig, arguments: Mapping[str, Any], lora: LoRARequest | None) -> _Session:
        with cores_end_with_this_process():
            llm = LLM(**arguments)
        engine = llm.llm_engine
        _switch_front_statistics_off(engine)
        try:
            watch_core(engine.engine_core)
            if lora is not None:
                engine.add_lora(lora)
        except BaseException:
            engine.engine_core.shutdown()
            raise
        return _Session(
            llm=llm,
            source=self._model.source(config),
            decoder=config.decoder,
            seed=config.random_seed,
            eos_token_ids=_eos_token_ids(llm, self._model.tokenizer(config)),
            vocab_size=engine.model_config.get_vocab_size(),
            lora=lora,
        )

    def _adapter(self, config: ExperimentConfig) -> LoRARequest | None:
        if config.lora is None:
            return None
        adapter = find_adapter(config.lora, self._model.cache_home)
        check_adapter(config.lora, adapter, self._model.source(config))
        return lora_request(adapter)

    def _settings(self) -> dict[str, Any]:
        session = self._loaded()
        found = session.engine.vllm_config
        kernels = {name for names in session.ask_workers("llem_attention") for name in names}
        return {
            **read_back(found),
            "vllm.attention_backend": ", ".join(sorted(kernels)) or None,
            "architecture": ", ".join(found.model_config.architectures),
            "vllm.engine_process": "own" if _has_own_process(session.engine) else "in-process",
        }

    def unload(self) -> None:
        """End the engine, its workers and their processes."""
        session, self._session = self._session, None
        with engine_output_logged(*LOGGERS):
            if session is not None:
                session.engine.engine_core.shutdown()
            del session
            gc.collect()
            _forget_process_groups()
        self._leave_place()


def _forget_prefixes(engine: Any) -> None:
    """Empty the cache of prefixes, so that prompts which come again are computed again.

    Raises:
        BackendError: vLLM keeps it.
    """
    if not engine.reset_prefix_cache() and engine.vllm_config.cache_config.enable_prefix_caching:
        raise BackendError(
            "its cache of prefixes cannot be emptied, because blocks of earlier prompts are still held; prompts that "
            "come again would cost nothing. Set vllm.enable_prefix_caching: false."
        )


def _run(session: _Session, requests: Sequence[GenerationRequest], listener: StepListener) -> list[tuple[str, Any]]:
    """Hand all `requests` to the engine and step it to the end; gives its id and output for each, in their order."""
    engine = session.engine
    ids: list[str] = []
    try:
        with listening(engine.engine_core, listener.note):
            for position, request in enumerate(requests):
                parameters = sampling_parameters(request, session.decoder, session.eos_token_ids, session.seed)
                prompt = tokens_input(list(request.token_ids))
                ids.append(engine.add_request(str(position), prompt, parameters, lora_request=session.lora))
            outputs: dict[str, Any] = {}
            while engine.has_unfinished_requests():
                outputs.update((output.request_id, output) for output in engine.step())
    except BaseException:
        with suppress(Exception):  # an engine that died has nothing left to give up
            engine.abort_request(ids, internal=True)
        raise
    return [(inner, outputs[str(position)]) for position, inner in enumerate(ids)]


def _request_output(request: GenerationRequest, answer: tuple[str, Any], listener: StepListener) -> RequestOutput:
    inner, output = answer
    times = listener.requests.get(inner, RequestTimes())
    (completion,) = output.outputs
    reason = FINISH_REASONS.get(completion.finish_reason)
    if reason is None or not completion.token_ids:
        raise BackendError(
            f"prompt {request.index}: vLLM gave it up ({completion.finish_reason}) after {len(completion.token_ids)} "
            "tokens. Its log tells why."
        )
    if times.started_s is None or len(times.token_times_s) != len(completion.token_ids):
        raise BackendError(
            f"prompt {request.index}: vLLM told {len(times.token_times_s)} instants for {len(completion.token_ids)} "
            "tokens; this version of it is not understood."
        )
    return RequestOutput(
        index=request.index,
        input_tokens=len(output.prompt_token_ids),
        token_ids=tuple(completion.token_ids),
        finish_reason=reason,
        started_s=times.started_s,
        token_times_s=times.token_times_s,
        queued_s=max(times.started_s - (times.queued_s or times.started_s), 0.0),
        cached_tokens=output.num_cached_tokens or 0,
        preemptions=times.preemptions,
    )


def _switch_front_statistics_off(engine: Any) -> None:
    """The core tells everything that is needed; the front would work it out again for loggers that nobody reads."""
    engine.log_stats = engine.output_processor.log_stats = False
    engine.output_processor.lora_states.log_stats = False
    engine.logger_manager = None


def _eos_token_ids(llm: LLM, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a text: what the checkpoint says about generation, else what its tokenizer says."""
    found = llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")
    return ids_or_tokenizers(found, tokenizer, llm.llm_engine.model_config.get_vocab_size())


def _has_own_process(engine: Any) -> bool:
    """Whether the engine core is in another process than its front."""
    return not hasattr(engine, "model_executor")


def _forget_process_groups() -> None:
    """What an engine core leaves in this process, so that another one can start in it."""
    if torch.distributed.is_initialized():
        cleanup_dist_env_and_memory()


def _explain_loading(error: Exception, place: EnginePlace, config: ExperimentConfig) -> str:
    told = in_our_words(place.cause() or "") or told_by_vllm(error)
    if "lora" in told.lower() and config.lora is not None:
        return f"lora: {config.lora.adapter_id or config.lora.adapter_path} cannot be loaded by vLLM: {told}"
    sent = f" (passthrough_kwargs sent along: {', '.join(sorted(config.passthrough_kwargs or {}))})"
    return f"model: {config.model} cannot be loaded by vLLM: {told}{sent if config.passthrough_kwargs else ''}"


def _explain_generating(error: Exception, place: EnginePlace | None, requests: Sequence[GenerationRequest]) -> str:
    told = told_by_vllm(error)
    if isinstance(error, EngineDeadError):
        cause = place.cause() if place is not None else None
        told = cause or "the engine's process has ended. Was it killed, or did memory run out? dmesg tells"
    if "OutOfMemory" in told or isinstance(error, MemoryError):
        return (
            f"out of memory while generating for {len(requests)} prompts ({told}). Lower vllm.gpu_memory_utilization, "
            "max_num_seqs or max_num_batched_tokens."
        )
    return f"vLLM failed to generate: {told}"
