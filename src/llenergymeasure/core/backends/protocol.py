"""What an inference engine has to do to be measured: load, generate, synchronise, unload, and tell the truth.

The harness owns the lifecycle and calls these in this order; an engine never measures anything about energy itself,
though what a meter that comes with it says can be told.

    preflight → plan_devices → tokenizer → load → describe → generate (warm-up) … → reset_peak_memory
              → [synchronize, generate …, synchronize] → memory → unload
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, runtime_checkable

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.model.parameters import ParameterCount
from llenergymeasure.datasets.types import PromptTokenizer
from llenergymeasure.domain.warnings import MeasurementWarning

FinishReason = Literal["eos", "length"]

NOT_COUNTED: Final = ParameterCount(None, "low", "")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, tokenised, with its output limits; its `index` in the experiment's list comes back in the output.

    Args:
        token_ids: Input ids as the engine must see them (BOS included, nothing added).
        min_new_tokens: EOS is ignored until this many tokens exist; 0 switches that off.
    """

    index: int
    token_ids: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one request produced.

    Args:
        input_tokens: Ids the engine processed as input, padding not counted.
        token_ids: Ids the model produced, up to and including its first EOS; never padding.
        finish_reason: `eos` when the model ended the text, `length` when the limit did.
        started_s: When the engine began work on this request (its batch, or its scheduling), on the measurement clock.
        token_times_s: When each output token was there, on the measurement clock, one per id in `token_ids`; requests
            of one batch may share the memory. `None` where the engine does not tell.
        queued_s: Seconds the request waited inside the engine before `started_s`.
        cached_tokens: Input tokens that a cache of prefixes already held, so that they were not computed.
        preemptions: Times that it lost its key-value cache to others and was computed again from its first token.
    """

    index: int
    input_tokens: int
    token_ids: Sequence[int]
    finish_reason: FinishReason
    started_s: float
    token_times_s: Sequence[float] | None = None
    queued_s: float = 0.0
    cached_tokens: int = 0
    preemptions: int = 0

    @property
    def output_tokens(self) -> int:
        """Number of ids produced, EOS included."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """What one call of `generate` produced, in the order of its requests.

    Args:
        compilations: Programs that were compiled and graphs that were recorded during the call; 0 also where the engine
            does not tell.
        steps: The engine's steps during the call; `None` where it does not tell.
    """

    requests: tuple[RequestOutput, ...]
    compilations: int = 0
    steps: StepLog | None = None


@dataclass(frozen=True, slots=True)
class Specialisation:
    """What of a batch's shape an engine prepares something for, when it first meets it: kernels, programs, graphs.

    Warm-up meets every number of rows, each with its longest prompt, whatever the engine; beyond that:

    Args:
        every_prompt_length: Each length of a batch's longest prompt is a shape of its own.
        full_output_length: So is each length that the texts reach, so that short outputs do not meet them all.
        meetings: Times that a shape is met until nothing is left to prepare: 3 for CUDA graphs (run, record, replay);
            0 for an engine that prepares nothing.
        rows: Requests that run at once in an engine that batches by itself: so many are rehearsed together.
    """

    every_prompt_length: bool = False
    full_output_length: bool = False
    meetings: int = 1
    rows: int = 1


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Device memory in MB (10^6 bytes); `None` where the engine does not tell.

    Args:
        peak_mb: Highest allocation since `reset_peak_memory`, summed over its devices; what is not the engine's
            own allocation (the CUDA context, graphs, libraries) need not be in it.
        kv_cache_mb: Key-value cache: reserved (vLLM, TensorRT-LLM) or largest (PyTorch).
    """

    peak_mb: float | None = None
    model_mb: float | None = None
    kv_cache_mb: float | None = None


@dataclass(frozen=True, slots=True)
class TokenPasses:
    """How often tokens go through the loaded model, with the way of generating that was asked for.

    Args:
        rows_per_prompt: Sequences computed for each prompt, such as beams.
        recomputes_text: Nothing is kept between steps: each one computes the whole text so far.
        drafted_by: What drafts tokens; how many of them are computed and rejected is not known. `None`: nothing does.
    """

    rows_per_prompt: int = 1
    recomputes_text: bool = False
    drafted_by: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What was really loaded, read back from the engine.

    Args:
        settings: The engine's resolved settings by config field (`pytorch.attn_implementation` → `sdpa`), JSON-ready.
        revision: Commit hash of the weights, where the Hub gave one.
        passes: What generating does with each token, for the count of operations.
        context_length: Longest sequence the model takes, in tokens.
        device_names: Marketing names of the devices in use, for people.
        specialisation: The shapes that warm-up has to meet, so that no first meeting falls into the window.
        warnings: What a reader of the figures must know about this model on this engine.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    parameters: ParameterCount = NOT_COUNTED
    passes: TokenPasses = TokenPasses()
    context_length: int | None = None
    device_names: tuple[str, ...] = ()
    specialisation: Specialisation = Specialisation()
    warnings: tuple[MeasurementWarning, ...] = ()


@runtime_checkable
class ModelLoader(Protocol):
    """Brings a model into memory, ready to generate."""

    def load(self, config: ExperimentConfig) -> None:
        """Bring the model into memory with every setting of `config`.

        Raises:
            BackendError: The model or a setting cannot be had; nothing is left allocated.
        """


@runtime_checkable
class InferenceEngine(Protocol):
    """Turns prompts into tokens."""

    def run(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for `requests` and return when the last token is there."""


@runtime_checkable
class InferenceBackend(ModelLoader, Protocol):
    """An inference engine under measurement, `load` included. One instance serves one experiment."""

    @property
    def name(self) -> str:
        """The name a config uses: `pytorch`, `vllm`, `tensorrt`."""

    def version(self) -> str:
        """Version of the engine package, e.g. `5.23.0`."""

    def preflight(self, config: ExperimentConfig) -> Sequence[str]:
        """Reasons why `config` cannot run here, each one sentence with its fix; empty when it can. Loads nothing."""

    def plan_devices(self, config: ExperimentConfig) -> tuple[DeviceId, ...]:
        """The devices `load` will use: GPU UUIDs, or `("cpu",)`; the baseline is taken on them."""

    def tokenizer(self, config: ExperimentConfig) -> PromptTokenizer:
        """The model's own tokenizer.

        Raises:
            BackendError: The model has none, or it cannot be read.
        """

    def devices(self) -> tuple[DeviceId, ...]:
        """The devices the loaded engine really uses."""

    @property
    def batch_size(self) -> int | None:
        """Requests per `generate` call; `None`: the engine batches by itself and wants all of them at once."""

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for all `requests`; returns when the last token is there.

        Raises:
            BackendError: The engine failed, e.g. out of memory (the message says what to reduce).
        """

    def synchronize(self) -> None:
        """Return only when every device has finished all work it was given."""

    def reset_peak_memory(self) -> None:
        """Start a new peak for `MemoryStats.peak_mb`."""

    def memory(self) -> MemoryStats:
        """Memory figures since the last `reset_peak_memory`."""

    def describe(self) -> LoadedModel:
        """What was loaded, read back from the engine itself."""

    def unload(self) -> None:
        """Free the model and its device memory; safe to call twice."""


@runtime_checkable
class CountsEnergy(Protocol):
    """A backend whose engine has a meter of its own: what that says is told beside this package's joules."""

    def counting_energy(self) -> AbstractContextManager[Callable[[], float | None]]:
        """Counts while it is open; gives what tells the joules after that (`None`: the meter failed)."""


def split_into_batches(
    requests: Sequence[GenerationRequest], batch_size: int | None
) -> list[Sequence[GenerationRequest]]:
    """The requests in order, `batch_size` at a time; all at once for `None`, where the engine batches by itself."""
    size = batch_size or len(requests)
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def steps_of_batch(outputs: Sequence[RequestOutput]) -> StepLog | None:
    """The steps of a batch that begins as one and is not refilled; `None` where its tokens have no instants.

    A row that has ended may be computed on until the batch ends; it is no longer counted.
    """
    times_s = max((output.token_times_s or () for output in outputs), key=len, default=())
    if not times_s or any(output.token_times_s is None for output in outputs):
        return None
    lengths = sorted(output.output_tokens for output in outputs)
    log = StepLog()
    log.add(times_s[0], len(outputs), sum(output.input_tokens for output in outputs), 0)
    running = tokens = 0
    for position in range(1, len(times_s)):
        alive = len(lengths) - bisect_right(lengths, position)
        running, tokens = running or alive, tokens + alive
        if position + 1 == len(times_s) or times_s[position + 1] > times_s[position]:  # else drafted: of the same step
            log.add(times_s[position], running, 0, tokens)
            running = tokens = 0
    return log
