"""One batch through `transformers.generate`: padded on the left, watched step by step, taken apart into requests.

Each decoding step is timed without making the steps wait for each other. On the CPU a step is done when its hook runs,
so the clock is read there. On CUDA the host runs ahead of the device: the hook only records an event in the stream, and
the times are worked out when the batch is over:

    host   ──start── step 1 hook ── step 2 hook ── …                finish: t_k = t_0 + elapsed(E_0, E_k)
    device        E_0 ─ prefill ──── E_1 ── decode ── E_2 ── …
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from llenergymeasure.config.models import DecoderConfig
from llenergymeasure.core.backends.checks import check_request
from llenergymeasure.core.backends.protocol import GenerationRequest, RequestOutput
from llenergymeasure.core.clock import Clock
from llenergymeasure.exceptions import BackendError


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a loaded model is asked to generate; the same for every batch.

    Args:
        parameters: `GenerationConfig` fields: decoding, cache and drafting. Token ids and lengths are not among them.
        eos_token_ids: Ids that end a text; empty for a model without one.
        context_length: Longest sequence the model takes, in tokens; `None`: unbounded.
        vocab_size: Rows of the model's input embedding.
        generate_arguments: Further keyword arguments of `generate`, e.g. the assistant model.
    """

    parameters: Mapping[str, Any]
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    context_length: int | None
    vocab_size: int
    generate_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_beams(self) -> int:
        """Beams of beam search; 1 is none."""
        return int(self.parameters.get("num_beams") or 1)

    def generation_config(self, max_new_tokens: int | None = None) -> GenerationConfig:
        """Everything that governs generation, said explicitly, so that no file of the model's can add to it."""
        return GenerationConfig(
            **self.parameters,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self.eos_token_ids) or None,
            pad_token_id=self.pad_token_id,
            return_dict_in_generate=True,
        )


@dataclass(frozen=True, slots=True)
class GeneratedBatch:
    """The outputs of one batch, and the bytes that its cache held in the end; `None`: there was none to see."""

    outputs: list[RequestOutput]
    cache_bytes: int | None


def decoder_parameters(decoder: DecoderConfig) -> dict[str, Any]:
    """The decoder settings as `GenerationConfig` fields; greedy decoding gets no sampling fields at all."""
    parameters: dict[str, Any] = {"do_sample": not decoder.is_deterministic}
    if not decoder.is_deterministic:
        parameters |= {"temperature": decoder.temperature, "top_k": decoder.top_k, "top_p": decoder.top_p}
        if decoder.min_p is not None:
            parameters["min_p"] = decoder.min_p
    if decoder.repetition_penalty != 1.0:
        parameters["repetition_penalty"] = decoder.repetition_penalty
    return parameters


def generate_batch(
    model: PreTrainedModel, requests: Sequence[GenerationRequest], decoding: Decoding, timer: StepTimer
) -> GeneratedBatch:
    """Generate for `requests`, of which there is at least one, as one batch; `timer` times the model's device.

    Raises:
        BackendError: A request does not fit the model, or a row came back empty.
    """
    for request in requests:
        check_request(request, decoding.context_length, decoding.vocab_size)
    started_s = timer.start()
    input_ids, attention_mask = pad_left(requests, decoding.pad_token_id, model.device)
    width = input_ids.shape[1]
    limits = [request.max_new_tokens for request in requests]
    least, eos = [request.min_new_tokens for request in requests], decoding.eos_token_ids
    steps = StepHook(timer, limits, width)
    with torch.inference_mode():
        generated = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=decoding.generation_config(max(limits)),
            stopping_criteria=[steps],
            logits_processor=[MinimumLengths(least, width, eos)] if any(least) and eos else None,
            **decoding.generate_arguments,
        )
    rows = generated.sequences[:, width:].tolist()
    # A slice of a memoryview is no copy. With beams, the text that won need not have grown step by step.
    times_s: Sequence[float] | None = memoryview(steps.token_times_s()) if decoding.num_beams == 1 else None
    outputs = [
        _request_output(request, row, eos, started_s, times_s) for request, row in zip(requests, rows, strict=True)
    ]
    return GeneratedBatch(outputs, cache_bytes(getattr(generated, "past_key_values", None), model.device.type))


def cache_bytes(cache: Any, device_type: str) -> int | None:
    """Bytes that a `Cache` of transformers holds on devices of a type; `None` without one, or where it is packed."""
    layers = getattr(cache, "layers", None)
    if not layers or any(hasattr(layer, "_quantized_keys") for layer in layers):
        return None
    tensors = (value for layer in layers for value in vars(layer).values() if isinstance(value, torch.Tensor))
    held = (tensor for tensor in tensors if tensor.ndim > 0 and tensor.device.type == device_type)
    return sum(tensor.numel() * tensor.element_size() for tensor in held) or None


def pad_left(
    requests: Sequence[GenerationRequest], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and attention mask of one batch, prompts flush right, on `device`."""
    width = max(len(request.token_ids) for request in requests)
    input_ids = torch.full((len(requests), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, request in enumerate(requests):
        length = len(request.token_ids)
        input_ids[row, width - length :] = torch.tensor(request.token_ids, dtype=torch.long)
        attention_mask[row, width - length :] = 1
    return input_ids.to(device), attention_mask.to(device)


class StepHook:
    """A stopping criterion of `generate`, which calls it once per step, after the step's tokens exist.

    It times the step, and ends each row at its own of `limits`: `max_new_tokens` is one number for the whole batch.
    """

    def __init__(self, timer: StepTimer, limits: Sequence[int], prompt_width: int) -> None:
        self._timer = timer
        self._limits = limits
        self._shortest = min(limits)
        self._prompt_width = prompt_width
        self._produced = array("i")
        self._row_limits: torch.Tensor | None = None
        self._nothing_ends: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """Which rows have reached their own limit."""
        self._timer.step()
        produced = input_ids.shape[1] - self._prompt_width
        self._produced.append(produced)
        if self._row_limits is None or self._nothing_ends is None:
            self._row_limits = _row_values(self._limits, input_ids)
            self._nothing_ends = torch.zeros_like(self._row_limits, dtype=torch.bool)
        return self._row_limits <= produced if produced >= self._shortest else self._nothing_ends

    def token_times_s(self) -> array[float]:
        """When the n-th token of every row was there; tokens accepted in one step share its instant."""
        step_times_s = self._timer.finish()
        times_s = array("d")
        for time_s, (before, after) in zip(step_times_s, pairwise((0, *self._produced)), strict=True):
            times_s.extend((time_s,) * (after - before))
        return times_s


class MinimumLengths:
    """A logits processor that keeps each row from ending before its own least number of new tokens."""

    def __init__(self, minimums: Sequence[int], prompt_width: int, eos_token_ids: Sequence[int]) -> None:
        self._minimums = minimums
        self._longest = max(minimums)
        self._prompt_width = prompt_width
        self._eos_token_ids = list(eos_token_ids)
        self._row_minimums: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` with the end tokens of the rows that are too short set to minus infinity."""
        produced = input_ids.shape[1] - self._prompt_width
        if produced >= self._longest:
            return scores
        if self._row_minimums is None:
            self._row_minimums = _row_values(self._minimums, input_ids)
        too_short = self._row_minimums > produced
        for token in self._eos_token_ids:
            scores[:, token].masked_fill_(too_short, float("-inf"))
        return scores


class HostStepTimer:
    """Reads the clock at every step: right where the device is the host itself."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.now
        self._times_s = array("d")

    def start(self) -> float:
        """Open a batch; returns its first instant, in seconds."""
        self._times_s = array("d")
        return self._now()

    def step(self) -> None:
        """Note the instant."""
        self._times_s.append(self._now())

    def finish(self) -> array[float]:
        """Instants of the steps, in seconds."""
        return self._times_s


class DeviceStepTimer:
    """Records an event in the device's stream at every step, and turns them into clock times afterwards.

    The first event is recorded on an idle device, next to a clock reading; that pair ties device time to the clock.
    Events are kept for later batches, because making one costs more than recording it.

    Args:
        new_event: Makes a timing event, as `torch.cuda.Event(enable_timing=True)` does.
        synchronize: Waits until the device is idle.
    """

    def __init__(
        self, clock: Clock, new_event: Callable[[], Any], stream: object, synchronize: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._new_event = new_event
        self._stream = stream
        self._synchronize = synchronize
        self._events: list[Any] = [new_event()]
        self._used = 1
        self._start_s = 0.0

    def start(self) -> float:
        """Open a batch: wait for the device, read the clock, mark the stream."""
        self._synchronize()
        self._start_s = self._clock.now()
        self._events[0].record(self._stream)
        self._used = 1
        return self._start_s

    def step(self) -> None:
        """Mark the stream; the host does not wait."""
        if self._used == len(self._events):
            self._events.append(self._new_event())
        self._events[self._used].record(self._stream)
        self._used += 1

    def finish(self) -> array[float]:
        """Instants of the steps, in seconds; waits for the last mark and reads all of them."""
        first, steps = self._events[0], self._events[1 : self._used]
        if steps:
            steps[-1].synchronize()
        return array("d", (self._start_s + first.elapsed_time(event) / 1000.0 for event in steps))


StepTimer = HostStepTimer | DeviceStepTimer
"""Times the steps of one batch after another: `start`, `step` when all work of a step is given, `finish`."""


def _row_values(values: Sequence[int], input_ids: torch.Tensor) -> torch.Tensor:
    """One value per row of `input_ids`; with beams, each prompt has several rows next to each other."""
    tensor = torch.tensor(values, device=input_ids.device)
    return tensor.repeat_interleave(input_ids.shape[0] // len(values))


def _request_output(
    request: GenerationRequest,
    row: Sequence[int],
    eos_token_ids: Sequence[int],
    started_s: float,
    times_s: Sequence[float] | None,
) -> RequestOutput:
    """What counts of a row ends with its first EOS; then comes padding, or what was made while other rows went on."""
    row = row[: request.max_new_tokens]
    length = next((count for count, token in enumerate(row, start=1) if token in eos_token_ids), None)
    token_ids = array("i", row[:length])
    if not token_ids:
        raise BackendError(f"prompt {request.index}: the model produced no token at all.")
    return RequestOutput(
        index=request.index,
        input_tokens=len(request.token_ids),
        token_ids=token_ids,
        finish_reason="length" if length is None else "eos",
        started_s=started_s,
        token_times_s=None if times_s is None else times_s[: len(token_ids)],
    )
