"""What real transformers generate through the engine: which tokens count, when they were there, what is left behind."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from fakes import VirtualClock  # noqa: E402
from llenergymeasure.core.backends.protocol import GenerationRequest, TokenPasses  # noqa: E402
from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend  # noqa: E402
from llenergymeasure.core.clock import SystemClock  # noqa: E402
from llenergymeasure.exceptions import BackendError  # noqa: E402
from pytorch_models import EOS, experiment, ids, loaded, requests, save_model  # noqa: E402

TEXTS = ("a", "the quick brown fox", "Why?", "one two three four five")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(model: Path) -> PyTorchBackend:
    backend = PyTorchBackend(SystemClock())
    backend.load(experiment(model, pytorch={"batch_size": 4}))
    return backend


@pytest.fixture(scope="module")
def alone(engine: PyTorchBackend) -> list[list[int]]:
    """Greedy texts of 40 tokens (or up to EOS), each prompt generated on its own."""
    return [ids(engine.generate([request]))[0] for request in requests(*TEXTS, limits=[40])]


def test_a_batch_gives_every_prompt_the_text_it_has_alone(engine: PyTorchBackend, alone: list[list[int]]) -> None:
    assert ids(engine.generate(requests(*TEXTS, limits=[40]))) == alone


def test_learned_positions_survive_left_padding_too(tmp_path: Path) -> None:
    save_model(tmp_path, model_type="gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=128)
    with loaded(experiment(tmp_path, pytorch={"batch_size": 4})) as gpt2:
        together = ids(gpt2.generate(requests(*TEXTS)))
        assert together == [ids(gpt2.generate([request]))[0] for request in requests(*TEXTS)]


def test_tokens_count_up_to_and_including_the_first_eos(model: Path, alone: list[list[int]]) -> None:
    # Made the end of text, a token of one row must end that row there, while the others go on.
    row, position = 1, 5
    with loaded(experiment(model, pytorch={"batch_size": 4})) as engine:
        end = alone[row][position]
        parts = engine.parts  # the checkpoint's own end token is rare; another one is put in its place
        object.__setattr__(parts.decoding, "eos_token_ids", (end,))
        output = engine.generate(requests(*TEXTS, limits=[40]))
    expected = [text[: text.index(end) + 1] if end in text else text for text in alone]
    assert [text[: len(got)] for text, got in zip(expected, ids(output), strict=True)] == ids(output)
    assert output.requests[row].output_tokens == expected[row].index(end) + 1
    assert output.requests[row].finish_reason == "eos"
    assert len({request.output_tokens for request in output.requests}) > 1


def test_every_row_stops_at_its_own_limit(engine: PyTorchBackend, alone: list[list[int]]) -> None:
    limits = [3, 16, 1, 7]
    output = engine.generate(requests(*TEXTS, limits=limits))
    assert ids(output) == [text[:limit] for text, limit in zip(alone, limits, strict=True)]
    for request, limit in zip(output.requests, limits, strict=True):
        assert (request.finish_reason == "length") == (EOS not in request.token_ids)
        assert request.output_tokens <= limit


@pytest.mark.parametrize("limits", [[12], [12, 3, 7, 1]])
def test_minimum_equal_to_maximum_forces_the_length(engine: PyTorchBackend, limits: list[int]) -> None:
    batch = [
        GenerationRequest(request.index, request.token_ids, limit, min_new_tokens=limit)
        for request, limit in zip(requests(*TEXTS), limits * 4, strict=False)
    ]
    output = engine.generate(batch)
    assert [request.output_tokens for request in output.requests] == [request.max_new_tokens for request in batch]
    assert all(request.finish_reason == "length" for request in output.requests)
    assert all(EOS not in request.token_ids for request in output.requests)


def test_forced_length_holds_for_a_model_that_wants_to_stop_at_once(tmp_path: Path) -> None:
    save_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["model.norm.weight"][:] = 0  # all logits equal: argmax takes the lowest id
    save_file(tensors, weights, metadata={"format": "pt"})
    # ids 0 and 1 are BOS and EOS; with both as end tokens, the model ends every text at its first token
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 1], "pad_token_id": 0}')
    with loaded(experiment(tmp_path, pytorch={"batch_size": 2})) as engine:
        free = engine.generate(requests("ab", "c"))
        forced = engine.generate(requests("ab", "c", limits=[6], minimum=6))
        some = engine.generate(requests("ab", "c", limits=[6], minimum=4))
    assert [(r.output_tokens, r.finish_reason) for r in free.requests] == [(1, "eos")] * 2
    assert [(r.output_tokens, r.finish_reason) for r in forced.requests] == [(6, "length")] * 2
    assert [(r.output_tokens, r.finish_reason) for r in some.requests] == [(5, "eos")] * 2


def test_input_tokens_are_those_of_the_prompt_without_padding(engine: PyTorchBackend) -> None:
    batch = requests(*TEXTS)
    assert [r.input_tokens for r in engine.generate(batch).requests] == [len(text) for text in TEXTS]


def test_more_requests_than_a_batch_come_back_in_order(engine: PyTorchBackend, alone: list[list[int]]) -> None:
    batch = requests(*TEXTS, *TEXTS, *TEXTS[:2], limits=[5])
    output = engine.generate(batch)
    assert [request.index for request in output.requests] == list(range(10))
    assert ids(output) == [text[:5] for text in (alone * 3)[:10]]


def test_tokens_of_a_step_share_one_instant_and_steps_ascend(engine: PyTorchBackend) -> None:
    clock = SystemClock()
    before_s = clock.now()
    output = engine.generate(requests(*TEXTS, limits=[12, 4], minimum=4)).requests
    after_s = clock.now()
    longest = max(output, key=lambda request: request.output_tokens)
    for request in output:
        times_s = list(request.token_times_s or ())
        assert len(times_s) == request.output_tokens
        assert times_s == list(longest.token_times_s or ())[: len(times_s)]
    times_s = list(longest.token_times_s or ())
    assert before_s <= longest.started_s < times_s[0]
    assert times_s[-1] <= after_s
    assert all(early < late for early, late in pairwise(times_s))


def test_rows_of_a_batch_share_the_memory_of_their_instants(engine: PyTorchBackend) -> None:
    views = [request.token_times_s for request in engine.generate(requests(*TEXTS)).requests]
    assert all(isinstance(view, memoryview) for view in views)
    assert len({id(view.obj) for view in views if isinstance(view, memoryview)}) == 1


def test_a_stall_of_50_ms_in_step_7_appears_in_that_tokens_gap(model: Path) -> None:
    clock = VirtualClock()  # only work that this test does takes time
    engine = PyTorchBackend(clock)
    engine.load(experiment(model, pytorch={"batch_size": 2}))
    steps = 0

    def work(*_: object) -> None:
        nonlocal steps
        steps += 1
        clock.sleep(0.2 if steps == 1 else 0.06 if steps == 7 else 0.01)

    engine.parts.model.register_forward_pre_hook(work)
    for request in engine.generate(requests("ab", "abc", minimum=16)).requests:
        times_s = list(request.token_times_s or ())
        assert times_s[0] - request.started_s == pytest.approx(0.2)
        gaps_s = [late - early for early, late in pairwise(times_s)]
        assert gaps_s == pytest.approx([0.01] * 5 + [0.06] + [0.01] * 9)
    engine.unload()


def test_sampling_follows_the_seed_and_nothing_that_ran_before(model: Path) -> None:
    config = experiment(model, random_seed=7, decoder={"temperature": 1.0}, pytorch={"batch_size": 2})
    with loaded(config) as engine:
        first = ids(engine.generate(requests(*TEXTS)))
        engine.generate(requests("something else entirely"))
        torch.manual_seed(999)
        assert ids(engine.generate(requests(*TEXTS))) == first
    with loaded(config.model_copy(update={"random_seed": 8})) as engine:
        assert ids(engine.generate(requests(*TEXTS))) != first


def test_batches_of_one_seed_do_not_draw_the_same_numbers(model: Path) -> None:
    config = experiment(model, decoder={"temperature": 2.0, "top_k": 0})
    with loaded(config) as engine:
        first, second = ids(engine.generate(requests("abc", "abc")))
    assert first != second


def test_the_process_keeps_its_random_numbers(model: Path) -> None:
    import numpy

    states = [random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()]
    with loaded(experiment(model, decoder={"temperature": 1.0})) as engine:
        engine.generate(requests("ab"))
    assert [random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()] == states


def test_beams_have_no_instants_since_their_text_need_not_have_grown_step_by_step(model: Path) -> None:
    with loaded(experiment(model, pytorch={"num_beams": 3, "batch_size": 2})) as engine:
        output = engine.generate(requests("ab", "abcde", limits=[8, 5], minimum=5)).requests
    assert [request.token_times_s for request in output] == [None, None]
    assert output[1].output_tokens == 5
    assert 5 <= output[0].output_tokens <= 8


def test_prompt_lookup_gives_the_same_text_and_honest_instants(model: Path, alone: list[list[int]]) -> None:
    text = "ab ab ab ab ab ab"
    with loaded(experiment(model)) as plain:
        expected = ids(plain.generate(requests(text, limits=[24])))
    with loaded(experiment(model, pytorch={"prompt_lookup_num_tokens": 4})) as engine:
        output = engine.generate(requests(text, limits=[24]))
    assert ids(output) == expected
    times_s = list(output.requests[0].token_times_s or ())
    assert len(times_s) == output.requests[0].output_tokens
    assert all(early <= late for early, late in pairwise(times_s))


def test_an_assistant_that_is_always_right_yields_several_tokens_per_step(model: Path) -> None:
    settings = {"assistant_model": str(model), "num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant"}
    with loaded(experiment(model)) as plain:
        expected = ids(plain.generate(requests("the quick", limits=[20], minimum=20)))
    with loaded(experiment(model, pytorch=settings)) as engine:
        output = engine.generate(requests("the quick", limits=[20], minimum=20))
    assert ids(output) == expected
    times_s = list(output.requests[0].token_times_s or ())
    assert len(times_s) == 20
    assert len(set(times_s)) < 20


def test_a_prompt_too_long_for_the_model_is_refused_with_both_numbers(engine: PyTorchBackend) -> None:
    with pytest.raises(BackendError, match=r"prompt 0 has 250 tokens and may grow by 16, but the model takes 256"):
        engine.generate([GenerationRequest(0, (5,) * 250, 16)])


def test_ids_beyond_the_vocabulary_are_refused_before_they_reach_the_device(engine: PyTorchBackend) -> None:
    with pytest.raises(BackendError, match="token id 258, but the model's vocabulary ends at 257"):
        engine.generate([GenerationRequest(0, (3, 258), 4)])


def test_an_empty_prompt_is_refused(engine: PyTorchBackend) -> None:
    with pytest.raises(BackendError, match="prompt 3 has no tokens"):
        engine.generate([GenerationRequest(3, (), 4)])


def test_running_out_of_memory_says_what_to_lower(engine: PyTorchBackend) -> None:
    def exhaust(*_: object) -> None:
        torch.empty(2**50, dtype=torch.float64)  # the allocator's own error, at a size no machine has

    handle = engine.parts.model.register_forward_pre_hook(exhaust)
    try:
        with pytest.raises(BackendError, match=r"batch of 2 prompts of up to 3 tokens .* Lower pytorch.batch_size"):
            engine.generate(requests("ab", "abc"))
    finally:
        handle.remove()


def test_unloading_frees_the_model_and_ends_the_session(model: Path) -> None:
    engine = PyTorchBackend(SystemClock())
    engine.load(experiment(model))
    gone = weakref.ref(engine.parts.model)
    engine.unload()
    engine.unload()
    gc.collect()
    assert gone() is None
    with pytest.raises(BackendError, match="no model loaded"):
        engine.generate(requests("ab"))


def test_figures_of_memory_are_those_of_the_loaded_model(engine: PyTorchBackend) -> None:
    engine.reset_peak_memory()
    engine.generate(requests("abcd", "ab", limits=[10], minimum=10))
    memory = engine.memory()
    # (2 embeddings of 258 x 64, 2 layers of 2 x 64² + 2 x 64 x 32 + 3 x 64 x 128, 5 norms of 64) at 4 bytes
    weights = 2 * 258 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 5 * 64
    assert memory.model_mb == pytest.approx(4 * weights / 1e6, rel=0.001)
    # keys and values: 2 x 2 layers x 2 heads x 16 x 4 bytes = 512 bytes a token; 2 rows of 4 + 10 - 1 tokens
    assert memory.kv_cache_mb == pytest.approx(512 * 2 * 13 / 1e6)
    assert memory.peak_mb is None or memory.peak_mb > memory.model_mb


def test_nothing_the_engine_says_reaches_the_terminal(model: Path) -> None:
    code = f"""
import logging, sys, warnings
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pytorch_models import experiment, loaded, requests
with loaded(experiment({str(model)!r})) as engine:
    engine.parts.model.register_forward_pre_hook(lambda *_: warnings.warn("odd weather"))
    logging.getLogger("transformers").warning("at loading time")
    engine.generate(requests("ab", "abc"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "odd weather" not in done.stderr
    assert "Loading weights" not in done.stderr
    assert "at loading time" in done.stderr  # outside the engine's calls, transformers is as it was


def test_warnings_of_the_engine_are_logged_as_information(
    engine: PyTorchBackend, caplog: pytest.LogCaptureFixture
) -> None:
    import warnings

    handle = engine.parts.model.register_forward_pre_hook(lambda *_: warnings.warn("odd weather", stacklevel=1))
    try:
        with caplog.at_level(logging.INFO, logger="llenergymeasure"):
            engine.generate(requests("ab", limits=[1]))
    finally:
        handle.remove()
    (record,) = (record for record in caplog.records if "odd weather" in record.message)
    assert record.levelno == logging.INFO


def held_mb(model: Path, text: str, count: int = 1, **fields: Any) -> float | None:
    with loaded(experiment(model, **fields)) as engine:
        engine.reset_peak_memory()
        engine.generate(requests(*[text] * count, limits=[8], minimum=8))
        return engine.memory().kv_cache_mb


def test_the_cache_is_what_transformers_holds(tmp_path: Path) -> None:
    sliding = {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 4, "num_hidden_layers": 3}
    model = save_model(tmp_path / "sliding", **sliding, layer_types=["sliding_attention"] * 2 + ["full_attention"])
    per_token = 2 * 2 * 16 * 4  # keys and values, 2 heads of 16, 4 bytes
    text = "twelve bytes"
    assert held_mb(model, text) == pytest.approx(
        per_token * (2 * 3 + 12 + 7) / 1e6
    )  # a window keeps one less than it is
    assert held_mb(model, text, pytorch={"use_cache": False}) is None
    static = held_mb(model, text, pytorch={"cache_implementation": "static"})
    assert static == pytest.approx(per_token * (2 * 4 + 64 + 16) / 1e6)  # reserved for the longest text allowed
    assert held_mb(model, text, 2, pytorch={"num_beams": 3, "batch_size": 2}) == pytest.approx(
        6 * per_token * (2 * 3 + 12 + 7) / 1e6
    )


def test_what_generating_does_with_each_token_is_told_for_the_count_of_operations(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    for section, passes in (
        ({}, TokenPasses()),
        ({"num_beams": 4}, TokenPasses(rows_per_prompt=4)),
        ({"use_cache": False}, TokenPasses(recomputes_text=True)),
        ({"prompt_lookup_num_tokens": 2}, TokenPasses(drafted_by="prompt lookup")),
        ({"assistant_model": str(model)}, TokenPasses(drafted_by=str(model))),
    ):
        with loaded(experiment(model, pytorch=section)) as engine:
            assert engine.describe().passes == passes
