"""What engines share: seeded random numbers, the GPUs, their output in the log, and the model's own tokenizer.

Figures must depend on the seed alone, and the process is left as it was found. An engine's warnings speak to the
programmer who called it (deprecations, casts, retries), so they are kept in this package's log as information; what
matters to a figure is found out and told by this package itself. Its errors stay errors.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.checks import attempt
from llenergymeasure.core.backends.place import EnginePlace
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.gpu.driver import DeviceId, GpuDriverError
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.core.gpu.visible import cuda_uuids_of_torch, order_is_certain, visible_gpus
from llenergymeasure.core.model.source import ModelSource, find_model, first_line
from llenergymeasure.exceptions import BackendError

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # without any handler, logging would print warnings to stderr on its own

HUB_LOGGERS: Final = ("transformers", "huggingface_hub")
"""Loggers of what every engine finds its models with."""


def gpu_uuids() -> tuple[DeviceId, ...]:
    """The GPUs that this process's PyTorch can use, in CUDA's order; CUDA is started only where NVML cannot tell."""
    uuids = uuids_by_nvml()
    return uuids if uuids is not None and len(uuids) == torch.cuda.device_count() else cuda_uuids_of_torch(torch)


def uuids_by_nvml() -> tuple[DeviceId, ...] | None:
    """The GPUs that CUDA shows to this process, in its order; `None` where NVML cannot tell."""
    try:
        nvml = open_nvml()
        return tuple(gpu.uuid for gpu in visible_gpus(os.environ, nvml)) if order_is_certain(os.environ, nvml) else None
    except GpuDriverError:
        return None  # a container may have CUDA without NVML; the energy backend will say what that costs


def derived_seed(seed: int, stream: int) -> int:
    """A seed for one of the uses of `seed`, so that no two of them draw the same numbers."""
    return random.Random(f"{seed}/{stream}").getrandbits(32)


@contextmanager
def seeded(seed: int, stream: int = 0) -> Iterator[None]:
    """Seed Python's, numpy's (if loaded) and PyTorch's generators, and put their states back afterwards.

    Args:
        stream: Tells apart the uses of one seed, so that two batches do not draw the same numbers.
    """
    derived = derived_seed(seed, stream)
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        try:
            random.seed(derived)
            if numpy:
                numpy.random.seed(derived)
            torch.manual_seed(derived)
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)


@contextmanager
def engine_output_logged(*engine_loggers: str) -> Iterator[None]:
    """While this is open, an engine's messages, warnings and progress bars go to the log or nowhere.

    Args:
        engine_loggers: Names of the loggers of the engine and its libraries, beside `HUB_LOGGERS`.
    """
    from transformers.utils import logging as transformers_logging

    handler = _ForwardHandler()
    had_bars = transformers_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in (*HUB_LOGGERS, *engine_loggers)]
    before = [(engine.handlers[:], engine.propagate) for engine in loggers]
    for engine in loggers:
        engine.handlers, engine.propagate = [handler], False
    transformers_logging.disable_progress_bar()  # and with it the Hub client's
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            yield
    finally:
        for engine, (handlers, propagate) in zip(loggers, before, strict=True):
            engine.handlers, engine.propagate = handlers, propagate
        if had_bars:
            transformers_logging.enable_progress_bar()


class _ForwardHandler(logging.Handler):
    """Passes an engine's records on, marked with where they come from; what it says in every step, only once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = f"{record.name}: {record.getMessage()}"
        if message in self._said:
            return
        self._said.add(message)
        level = record.levelno if record.levelno >= logging.ERROR else min(record.levelno, logging.INFO)
        logger.log(level, "%s", message)


def _log_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    logger.info("%s: %s", category.__name__, message)


def local_directory(source: ModelSource, wanted: str | None = None) -> Path:
    """Where its files are; those that are `wanted` (`None`: all) are fetched from the Hub if they are not here."""
    if source.is_here:
        return Path(source.location)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source.location, allow_patterns=wanted, **source.loader_arguments))


TOKENIZER_FILES: Final = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
"""What tokenizers of all kinds are kept in."""


class OwnModel:
    """Where an experiment's model is, and its tokenizer: each found once, when it is first asked for.

    Args:
        cache_home: Home of the Hub's cache (`HF_HOME`); `None` leaves it to the Hub's client.
        engine_loggers: What the engine's libraries speak through.
    """

    def __init__(self, cache_home: Path | None, *engine_loggers: str) -> None:
        self.cache_home = cache_home
        self._loggers = engine_loggers
        self._source: ModelSource | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def source(self, config: ExperimentConfig) -> ModelSource:
        """Where its files are; `BackendError` where they are not."""
        if self._source is None:
            self._source = find_model(config.model, config.revision, cache_home=self.cache_home)
        return self._source

    def tokenizer(self, config: ExperimentConfig) -> PreTrainedTokenizerBase:
        """Its own; see `load_tokenizer`."""
        if self._tokenizer is None:
            with engine_output_logged(*self._loggers):
                self._tokenizer = load_tokenizer(config, self.source(config))
        return self._tokenizer

    def checked(self, config: ExperimentConfig, problems: list[str]) -> ModelSource | None:
        """Its source, its tokenizer read too; what stands in the way of either goes to `problems`."""
        source = attempt(lambda: self.source(config), problems)
        if source is not None:
            attempt(lambda: self.tokenizer(config), problems)
        return source

    def check_drafter(self, drafter: str | None, what: str, problems: list[str]) -> None:
        """Look where the files of another model are that `what` names; what stands in the way goes to `problems`."""
        if drafter is not None:
            attempt(lambda: find_model(drafter, None, cache_home=self.cache_home, what=what), problems)


def load_tokenizer(config: ExperimentConfig, source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        BackendError: The model comes without one, or it cannot be read.
    """
    try:
        return source.load(AutoTokenizer.from_pretrained, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # what a tokenizer's files can fail with is open-ended
        if source.is_here and not any(any(Path(source.location).glob(pattern)) for pattern in TOKENIZER_FILES):
            raise BackendError(
                f"model: {config.model} comes without a tokenizer: {source.location} holds none of its files. "
                "Put them beside the weights (save_pretrained into the same directory)."
            ) from error
        if "trust_remote_code" in str(error):
            raise BackendError(
                f"trust_remote_code: the tokenizer of {config.model} is code of its own, which is run only where that "
                "is allowed. Read it, then set trust_remote_code: true."
            ) from error
        raise BackendError(
            f"model: the tokenizer of {config.model} cannot be loaded ({first_line(error)}). "
            f"Fetch or save its files anew; they are looked for in {source.location}."
        ) from error


def eos_token_ids(source: ModelSource, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[int, ...]:
    """The ids that end a text: what the checkpoint says about generation, else what its tokenizer says."""
    try:
        found = source.load(GenerationConfig.from_pretrained).eos_token_id
    except OSError:  # it comes without that file
        found = source.config.get("eos_token_id")
    return ids_or_tokenizers(found, tokenizer, vocab_size)


def ids_or_tokenizers(found: Any, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[int, ...]:
    """The ids of the vocabulary among those that a checkpoint gives (`None`, one, or several), else its tokenizer's."""
    found = tokenizer.eos_token_id if found is None else found
    ids = found if isinstance(found, list | tuple) else () if found is None else (found,)
    return tuple(int(token) for token in ids if 0 <= token < vocab_size)


class TransformersTokenizer:
    """Encodes prompts with the model's own tokenizer and its own special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._tokenizer)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of BOS, EOS, padding and other added control tokens."""
        control = (token_id for token_id, token in self._tokenizer.added_tokens_decoder.items() if token.special)
        return frozenset(self._tokenizer.all_special_ids).union(control)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with what the tokenizer itself puts before and after it."""
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


SessionT = TypeVar("SessionT")


class OwnEngine(Generic[SessionT]):
    """What every engine of this package has: a clock, its model, and what of that is loaded.

    Args:
        model_cache_dir: Home of the Hub's cache (`HF_HOME`); `None` leaves it to the Hub's client.
    """

    name = ""
    loggers: tuple[str, ...] = ()
    """What it and the libraries behind it speak through."""

    def __init__(self, clock: Clock, model_cache_dir: Path | None = None) -> None:
        self._clock = clock
        self._model = OwnModel(model_cache_dir, *self.loggers)
        self._session: SessionT | None = None

    def tokenizer(self, config: ExperimentConfig) -> TransformersTokenizer:
        """The model's own tokenizer."""
        return TransformersTokenizer(self._model.tokenizer(config))

    def _loaded(self) -> SessionT:
        if self._session is None:
            raise BackendError(f"the {self.name} backend has no model loaded; call load() first.")
        return self._session


class HasLLM(Protocol):
    """What an engine that is an `LLM` object has loaded."""

    @property
    def llm(self) -> Any:
        """The object."""


LLMSessionT = TypeVar("LLMSessionT", bound=HasLLM)


class OwnLLM(OwnEngine[LLMSessionT]):
    """One that is an `LLM` object, which batches by itself and has processes of its own."""

    _place: EnginePlace | None = None

    @property
    def llm(self) -> Any:
        """The loaded `LLM`, to look at."""
        return self._loaded().llm

    @property
    def batch_size(self) -> int | None:
        """`None`: it batches by itself."""
        return None

    def _leave_place(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None
