"""The engine: what `InferenceBackend` asks for, in the order in which a run asks for it."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from llem_markov.chain import END, CharacterTokenizer, MarkovChain
from llenergymeasure import ExperimentConfig
from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    LoadedModel,
    MemoryStats,
    RequestOutput,
    Specialisation,
    steps_of_batch,
)
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.model.parameters import ParameterCount
from llenergymeasure.exceptions import BackendError

DEFAULTS = {"order": 3, "batch_size": 4}
"""What `passthrough_kwargs` may set: characters that are looked back at, and requests at once."""


class MarkovBackend:
    """Runs on the CPU; the model is a text file."""

    name = "markov"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock  # the only clock there is: all instants are on it
        self._chain: MarkovChain | None = None
        self._config: ExperimentConfig | None = None

    def version(self) -> str:
        return metadata.version("llem-markov")

    def preflight(self, config: ExperimentConfig) -> Sequence[str]:
        """Every reason against `config` at once, each with its fix. What is not applied must be refused."""
        problems = []
        if not Path(config.model).is_file():
            problems.append(f"model: {config.model} is no text file. Name one to learn the chain from.")
        if config.precision != "fp32":
            problems.append("precision: a chain counts and has no number format. Set precision: fp32.")
        if config.lora is not None:
            problems.append("lora: a chain has no weights to adapt. Remove it.")
        decoder = config.decoder
        if not decoder.is_deterministic and (decoder.temperature, decoder.top_k, decoder.top_p) != (1.0, 0, 1.0):
            problems.append("decoder: sampling is by plain frequency here. Set temperature 1, top_k 0, top_p 1.")
        if decoder.repetition_penalty != 1.0 or decoder.min_p is not None:
            problems.append("decoder: repetition_penalty and min_p are not supported. Leave them out.")
        for key, value in (config.passthrough_kwargs or {}).items():
            if key not in DEFAULTS:
                problems.append(f"passthrough_kwargs.{key}: unknown. Use {' or '.join(DEFAULTS)}.")
            elif type(value) is not int or value < 1:
                problems.append(f"passthrough_kwargs.{key}: {value!r} must be an integer of at least 1.")
        return problems

    def plan_devices(self, config: ExperimentConfig) -> tuple[str, ...]:
        return ("cpu",)

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def tokenizer(self, config: ExperimentConfig) -> CharacterTokenizer:
        try:
            return CharacterTokenizer(Path(config.model).read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            raise BackendError(f"model: {config.model} cannot be read: {error}") from error

    def load(self, config: ExperimentConfig) -> None:
        problems = self.preflight(config)
        if problems:
            raise BackendError(problems[0])
        self._config = config
        self._chain = MarkovChain(Path(config.model), self._setting("order"))

    @property
    def batch_size(self) -> int:
        return self._setting("batch_size")

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """All requests side by side, a token each per step; a row that has ended takes no further part."""
        chain, config = self._loaded()
        for request in requests:
            if not request.token_ids or max(request.token_ids) >= chain.tokenizer.vocab_size:
                raise BackendError(f"prompt {request.index} is empty, or of another model's tokens.")
        started_s = self._clock.now()
        # Dice of their own: seeded per request, so that neither company nor what came before changes a text.
        greedy = config.decoder.is_deterministic
        dice = [None if greedy else random.Random(f"{config.random_seed} {request.index}") for request in requests]
        texts = [array("i") for _ in requests]
        times_s = [array("d") for _ in requests]
        running = list(range(len(requests)))
        while running:
            for row in running:
                request, text = requests[row], texts[row]
                context = (*request.token_ids[-chain.order :], *text[-chain.order :])
                text.append(chain.next_token(context, dice[row], len(text) >= request.min_new_tokens))
            step_s = self._clock.now()  # the step is over: its tokens are all there
            for row in running:
                times_s[row].append(step_s)
            running = [
                row for row in running if texts[row][-1] != END and len(texts[row]) < requests[row].max_new_tokens
            ]
        outputs = tuple(
            RequestOutput(
                index=request.index,
                input_tokens=len(request.token_ids),
                token_ids=text,
                finish_reason="eos" if text[-1] == END else "length",
                started_s=started_s,
                token_times_s=times,
            )
            for request, text, times in zip(requests, texts, times_s, strict=True)
        )
        return GenerationOutput(outputs, steps=steps_of_batch(outputs))

    def synchronize(self) -> None:
        """Nothing is ever under way when a call has returned."""

    def reset_peak_memory(self) -> None:
        """Memory is not told."""

    def memory(self) -> MemoryStats:
        return MemoryStats()  # None where nobody knows, never 0

    def describe(self) -> LoadedModel:
        """Read back from what was loaded, not from what was asked for."""
        chain, _ = self._loaded()
        return LoadedModel(
            settings={"passthrough_kwargs.order": chain.order, "passthrough_kwargs.batch_size": self.batch_size},
            parameters=ParameterCount(None, "low", f"a chain of {chain.transitions} transitions multiplies nothing"),
            specialisation=Specialisation(meetings=0),  # nothing is compiled, whatever the shape
        )

    def unload(self) -> None:
        self._chain = self._config = None

    def _setting(self, name: str) -> int:
        asked = (self._config.passthrough_kwargs if self._config else None) or {}
        return int(asked.get(name, DEFAULTS[name]))

    def _loaded(self) -> tuple[MarkovChain, ExperimentConfig]:
        if self._chain is None or self._config is None:
            raise BackendError("no model is loaded")
        return self._chain, self._config
