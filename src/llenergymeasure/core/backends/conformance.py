"""One set of checks that every inference engine must pass, whoever wrote it.

    assert check_backend(lambda: MyBackend(SystemClock()), config) == []

The checks load `config`'s model for real, three times, and generate a few short texts. They look at what figures depend
on: counts of tokens, their instants, the engine's steps, the devices, and that the process is left as it was found. The
engine must use the machine's own clock (`SystemClock`).
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Final

from llenergymeasure.config.models import DecoderConfig, ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest, InferenceBackend, RequestOutput
from llenergymeasure.core.backends.rehearsal import MAX_MEETINGS
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.conformance import ConformanceFailure as ConformanceFailure  # what the suite gives
from llenergymeasure.core.conformance import failures_of
from llenergymeasure.exceptions import BackendError

TEXTS: Final = (
    "The kettle",
    "A lighthouse keeper wrote down the weather every morning, and nobody read it.",
    "Why is the sky blue?",
    "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
)
OUTPUT_TOKENS: Final = 8
"""Longest output of the checks, in tokens; `config.max_output_tokens` must allow it."""

NO_VOCABULARY: Final = 10_000_000
"""More tokens than any vocabulary has."""

MISSING_MODEL: Final = "./there-is-no-such-model"


@dataclass(frozen=True, slots=True)
class _Subject:
    """The engine under test, loaded, and prompts for it."""

    engine: InferenceBackend
    config: ExperimentConfig
    prompts: tuple[tuple[int, ...], ...]

    def requests(self, *, limits: Sequence[int] = (OUTPUT_TOKENS,), forced: bool = False) -> list[GenerationRequest]:
        """One request per prompt, limits taken in turn; `forced` makes every text as long as its limit."""
        return [
            GenerationRequest(index, prompt, limit, limit if forced else 0)
            for index, (prompt, limit) in enumerate(zip(self.prompts, cycle(limits), strict=False))
        ]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[RequestOutput]:
        """Generate as the harness does: as many requests per call as the engine asks for."""
        size = self.engine.batch_size or len(requests)
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        return [output for batch in batches for output in self.engine.generate(batch).requests]


def check_backend(factory: Callable[[], InferenceBackend], config: ExperimentConfig) -> list[ConformanceFailure]:
    """Run every check on a fresh engine; returns the promises not kept.

    Args:
        config: An experiment that the engine can run here, with greedy decoding and at least `OUTPUT_TOKENS` output
            tokens; a small model will do.
    """
    engine = factory()
    failures = failures_of("protocol", _speaks_the_protocol(engine))
    failures += failures_of("preflight", _preflight_is_clean(engine, config))
    if failures:
        return failures
    failures += failures_of("missing_model", _missing_model_is_an_error(factory(), config))
    try:
        tokenizer = engine.tokenizer(config)
        prompts = tuple(tuple(tokenizer.encode(text)[: config.max_input_tokens]) for text in TEXTS)
        engine.load(config)
    except Exception as error:  # noqa: BLE001 (an engine under test may raise anything)
        return [*failures, ConformanceFailure("load", f"{type(error).__name__}: {error}")]
    subject = _Subject(engine, config, prompts)
    for name, check in _CHECKS.items():
        failures += failures_of(name, check(subject))
    return failures


def _speaks_the_protocol(engine: InferenceBackend) -> Iterator[str]:
    if not isinstance(engine, InferenceBackend):
        yield f"{type(engine).__name__} lacks methods of InferenceBackend"
    if not engine.version():
        yield "version() is empty"


def _preflight_is_clean(engine: InferenceBackend, config: ExperimentConfig) -> Iterator[str]:
    yield from engine.preflight(config)
    if not engine.plan_devices(config):
        yield "plan_devices() names no device"


def _missing_model_is_an_error(engine: InferenceBackend, config: ExperimentConfig) -> Iterator[str]:
    missing = config.model_copy(update={"model": MISSING_MODEL})
    if not engine.preflight(missing):
        yield "preflight() has nothing to say about a model that does not exist"
    try:
        engine.load(missing)
    except BackendError:
        return
    yield "load() of a model that does not exist raised no BackendError"


def _devices_are_the_planned_ones(subject: _Subject) -> Iterator[str]:
    planned, used = subject.engine.plan_devices(subject.config), subject.engine.devices()
    if not used or not set(used) <= set(planned):
        yield f"uses {used}, planned {planned}: the baseline would be another device's"


def _batch_size_is_sane(subject: _Subject) -> Iterator[str]:
    size = subject.engine.batch_size
    if size is not None and size < 1:
        yield f"batch_size is {size}"


def _outputs_answer_requests(subject: _Subject) -> Iterator[str]:
    requests = subject.requests()
    outputs = subject.generate(requests)
    if [output.index for output in outputs] != [request.index for request in requests]:
        yield "outputs are not in the order of their requests"
        return
    for request, output in zip(requests, outputs, strict=True):
        where, limit = f"prompt {request.index}", request.max_new_tokens
        if output.input_tokens != len(request.token_ids):
            yield f"{where}: {output.input_tokens} input tokens for {len(request.token_ids)} ids (is padding counted?)"
        if not 1 <= output.output_tokens <= limit:
            yield f"{where}: {output.output_tokens} output tokens with a limit of {limit}"
        if output.finish_reason == "length" and output.output_tokens != limit:
            yield f"{where}: ended by length after {output.output_tokens} of {limit} tokens"
        if output.finish_reason == "eos" and output.token_ids[-1] in list(output.token_ids[:-1]):
            yield f"{where}: went on after its first end-of-sequence token {output.token_ids[-1]}"


def _forced_lengths_are_met(subject: _Subject) -> Iterator[str]:
    """Two engines forced to the same lengths must report the same counts."""
    for output in subject.generate(subject.requests(forced=True)):
        if output.output_tokens != OUTPUT_TOKENS:
            yield f"prompt {output.index}: {output.output_tokens} tokens where {OUTPUT_TOKENS} were forced"


def _company_changes_no_length(subject: _Subject) -> Iterator[str]:
    """A request alone has as many tokens as among others, whatever the size of a batch."""
    requests = subject.requests(forced=True)
    for count in range(1, len(requests) + 1):
        outputs = subject.generate(requests[:count])
        found = [(output.input_tokens, output.output_tokens) for output in outputs]
        expected = [(len(request.token_ids), request.max_new_tokens) for request in requests[:count]]
        if found != expected:
            yield f"{count} requests at once: {found} tokens in and out, expected {expected}"


def _rows_end_on_their_own(subject: _Subject) -> Iterator[str]:
    limits = (OUTPUT_TOKENS, 3, OUTPUT_TOKENS - 2, 1)
    requests = subject.requests(limits=limits, forced=True)
    for request, output in zip(requests, subject.generate(requests), strict=True):
        if output.output_tokens != request.max_new_tokens:
            yield f"prompt {request.index}: {output.output_tokens} tokens, its own limit is {request.max_new_tokens}"


def _tokens_are_timed_truly(subject: _Subject) -> Iterator[str]:
    clock = SystemClock()
    subject.engine.synchronize()
    before_s = clock.now()
    outputs = subject.generate(subject.requests(forced=True))
    subject.engine.synchronize()
    after_s = clock.now()
    for output in outputs:
        where = f"prompt {output.index}"
        if not before_s <= output.started_s <= after_s:
            yield f"{where}: started outside the call that generated it"
        times_s = output.token_times_s
        if times_s is None:
            continue
        if len(times_s) != output.output_tokens:
            yield f"{where}: {len(times_s)} instants for {output.output_tokens} tokens"
        elif times_s[0] <= output.started_s or times_s[-1] > after_s:
            yield f"{where}: tokens at {times_s[0]:.6f}..{times_s[-1]:.6f} s, generated within the call"
        elif any(later < earlier for earlier, later in pairwise(times_s)):
            yield f"{where}: a token before its predecessor"


def _steps_add_up(subject: _Subject) -> Iterator[str]:
    """Where an engine tells its steps, they hold every token, each at the instant that its request says."""
    requests = subject.requests(forced=True)[: subject.engine.batch_size]
    produced = subject.engine.generate(requests)
    if produced.steps is None:
        return
    steps = list(produced.steps)
    ends_s = [step.ended_s for step in steps]
    told_s = {instant for output in produced.requests for instant in output.token_times_s or ()}
    if any(later <= earlier for earlier, later in pairwise(ends_s)):
        yield "a step does not end after the one before it"
    if not told_s <= set(ends_s):
        yield "tokens are there at instants at which no step ends"
    if not all(1 <= step.requests <= len(requests) for step in steps):
        yield f"steps of {sorted({step.requests for step in steps})} requests, and {len(requests)} were asked for"
    continued = sum(output.output_tokens - 1 for output in produced.requests)
    if sum(step.decode_tokens for step in steps) < continued:
        yield f"steps hold {sum(step.decode_tokens for step in steps)} decode tokens, and {continued} are in the texts"
    prompts = sum(output.input_tokens for output in produced.requests)
    if not 1 <= sum(step.prefill_tokens for step in steps) <= prompts:
        yield f"steps hold {sum(step.prefill_tokens for step in steps)} prefill tokens of prompts of {prompts}"


def _greedy_decoding_repeats(subject: _Subject) -> Iterator[str]:
    if not subject.config.decoder.is_deterministic:
        return
    first, second = (subject.generate(subject.requests()) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        if list(one.token_ids) != list(other.token_ids):
            yield f"prompt {one.index}: greedy decoding gave two texts"


def _shapes_are_prepared_once(subject: _Subject) -> Iterator[str]:
    """What an engine compiles for a shape must come to an end, or warm-up could not keep it out of the window."""
    batch = subject.requests(forced=True)[: subject.engine.batch_size]
    for _ in range(MAX_MEETINGS):
        compilations = subject.engine.generate(batch).compilations
        if compilations < 0:
            yield f"generate() tells {compilations} compilations"
        if compilations <= 0:
            return
    yield f"generate() still compiles when it meets a shape for the {MAX_MEETINGS}th time"


def _process_is_left_alone(subject: _Subject) -> Iterator[str]:
    before = _random_states()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        subject.generate(subject.requests())
    if _random_states() != before:
        yield "generate() changed the state of a global random number generator"
    if printed.getvalue():
        yield f"generate() printed {printed.getvalue()[:80]!r}"


def _random_states() -> tuple[object, ...]:
    torch = sys.modules.get("torch")
    return (random.getstate(), torch.get_rng_state().tolist() if torch is not None else None)


def _bad_requests_are_errors(subject: _Subject) -> Iterator[str]:
    """What cannot be answered is refused, never cut to size, and does not take the engine down with it."""
    bad = {"no token": (), "a token beyond the vocabulary": (NO_VOCABULARY,)}
    if (context := subject.engine.describe().context_length) is not None:
        bad["as many tokens as the model takes in all"] = (subject.prompts[0][-1],) * context
    for what, ids in bad.items():
        try:
            subject.engine.generate([GenerationRequest(0, ids, 1)])
        except BackendError:
            continue
        yield f"a prompt of {what} raised no BackendError"
    if len(subject.generate(subject.requests(forced=True))) != len(subject.prompts):
        yield "the engine no longer answers after a request that it refused"


def _figures_are_plausible(subject: _Subject) -> Iterator[str]:
    subject.engine.reset_peak_memory()
    subject.generate(subject.requests())
    memory = subject.engine.memory()
    for name in ("peak_mb", "model_mb", "kv_cache_mb"):
        figure = getattr(memory, name)
        if figure is not None and figure <= 0:
            yield f"memory().{name} is {figure}; what is not known must be None"
    model = subject.engine.describe()
    json.dumps(dict(model.settings), allow_nan=False)
    if not model.settings:
        yield "describe() reads no setting back"
    if model.parameters.params is None and not model.parameters.note:
        yield "describe() counts no parameters and does not say why"


def _loads_again_and_follows_the_seed(subject: _Subject) -> Iterator[str]:
    """Unloaded and loaded again, sampling: the seed alone decides the texts, not what was generated before."""
    decoder = DecoderConfig(temperature=1.0, top_k=0)
    config = subject.config.model_copy(update={"decoder": decoder})
    if subject.engine.preflight(config):
        return  # it does not sample
    requests = subject.requests(forced=True)
    texts = []
    for seed in (config.random_seed, config.random_seed + 1):
        subject.engine.unload()
        subject.engine.load(config.model_copy(update={"random_seed": seed}))
        texts.append(_texts(subject.generate(requests)))
        subject.generate(requests[:1])
        if _texts(subject.generate(requests)) != texts[-1]:
            yield f"seed {seed}: what was generated before changed the texts"
    if texts[0] == texts[1]:
        yield "two seeds gave the same texts"


def _texts(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [list(output.token_ids) for output in outputs]


def _unloads_for_good(subject: _Subject) -> Iterator[str]:
    subject.engine.unload()
    subject.engine.unload()
    try:
        subject.engine.generate(subject.requests()[:1])
    except BackendError:
        return
    yield "generate() still works, or fails without a BackendError, after unload()"


_CHECKS: Final[dict[str, Callable[[_Subject], Iterator[str]]]] = {
    "devices": _devices_are_the_planned_ones,
    "batch_size": _batch_size_is_sane,
    "outputs": _outputs_answer_requests,
    "forced_lengths": _forced_lengths_are_met,
    "company": _company_changes_no_length,
    "row_limits": _rows_end_on_their_own,
    "timestamps": _tokens_are_timed_truly,
    "steps": _steps_add_up,
    "determinism": _greedy_decoding_repeats,
    "shapes": _shapes_are_prepared_once,
    "side_effects": _process_is_left_alone,
    "figures": _figures_are_plausible,
    "errors": _bad_requests_are_errors,
    "reload": _loads_again_and_follows_the_seed,
    "unload": _unloads_for_good,
}
"""In this order, since nothing works after the last."""
