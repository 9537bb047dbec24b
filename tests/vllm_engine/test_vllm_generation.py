"""Texts, lengths, seeds and instants of the real vLLM, against PyTorch on the same model where both must agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pytorch_models
from llenergymeasure.core.backends.conformance import check_backend
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.exceptions import BackendError
from pytorch_models import EOS, ids, requests, save_adapter
from vllm_models import NEEDS_VLLM, backend, experiment, loaded, save_wide_model

pytestmark = NEEDS_VLLM

TEXTS = ("the quick brown fox", "why?", "a", "Heat flows from warm to cold.", "one two three", "kettle")
SAMPLING = {"temperature": 0.8, "top_k": 0, "top_p": 0.9}
ROUNDING_S = 1e-6
"""Between two readings of one clock."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_model(tmp_path_factory.mktemp("llama"))


def pytorch_texts(model: Path | str, asked: list[GenerationRequest], **fields: Any) -> list[list[int]]:
    with pytorch_models.loaded(pytorch_models.experiment(model, pytorch={"batch_size": 3}, **fields)) as engine:
        return ids(engine.generate(asked))


# --- the same model, the same tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [{"temperature": 0}, {"temperature": 0, "repetition_penalty": 1.3}])
def test_the_built_in_model_says_the_same_as_on_pytorch(decoder: dict[str, Any]) -> None:
    prompts = [tuple(range(5 + 7 * index, 9 + 17 * index)) for index in range(7)]
    asked = [GenerationRequest(index, ids, 24, 24 * (index % 2)) for index, ids in enumerate(prompts)]
    fields: dict[str, Any] = {"max_input_tokens": 128, "max_output_tokens": 24, "decoder": decoder}
    with loaded(experiment("builtin/tiny-llama", **fields)) as engine:
        output = engine.generate(asked)
    assert ids(output) == pytorch_texts("builtin/tiny-llama", asked, **fields)
    assert [one.input_tokens for one in output.requests] == [len(prompt) for prompt in prompts]


def test_texts_end_where_they_do_on_pytorch(model: Path, tmp_path: Path) -> None:
    """With an end token that these texts come to by themselves, in the checkpoint's own generation config."""
    free = pytorch_texts(model, requests(*TEXTS, limits=[16]))
    ends = sorted({text[5] for text in free} | {EOS})
    save_wide_model(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    for least in (0, 8):
        asked = requests(*TEXTS, limits=[16], minimum=least)
        with loaded(experiment(tmp_path)) as engine:
            output = engine.generate(asked)
        assert ids(output) == pytorch_texts(tmp_path, asked)
        assert all(one.output_tokens >= least for one in output.requests)
        assert least or "eos" in {one.finish_reason for one in output.requests}
        for one in output.requests:
            assert (one.token_ids[-1] in ends) == (one.finish_reason == "eos")


def test_the_checkpoints_sampling_defaults_add_nothing(tmp_path: Path) -> None:
    save_wide_model(tmp_path)
    plain = pytorch_texts(tmp_path, requests(*TEXTS))
    content = {"eos_token_id": EOS, "repetition_penalty": 9.0, "max_new_tokens": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with loaded(experiment(tmp_path)) as engine:
        assert ids(engine.generate(requests(*TEXTS))) == plain


def test_an_adapter_says_the_same_as_on_pytorch(model: Path, tmp_path: Path) -> None:
    lora = {"adapter_path": str(save_adapter(tmp_path, model))}
    asked = requests(*TEXTS)
    with loaded(experiment(model, lora=lora)) as engine:
        adapted = ids(engine.generate(asked))
        assert engine.llm.llm_engine.vllm_config.lora_config.max_lora_rank == 8
    assert adapted == pytorch_texts(model, asked, lora=lora)
    assert adapted != pytorch_texts(model, asked)


def test_an_adapter_of_another_model_is_an_error_of_loading(model: Path, tmp_path: Path) -> None:
    other = save_wide_model(tmp_path / "other", intermediate_size=64)
    lora = {"adapter_path": str(save_adapter(tmp_path / "adapter", other))}
    with pytest.raises(BackendError, match=r"does not fit .*2 of its tensors have .*down_proj"):
        backend().load(experiment(model, lora=lora))


def test_an_adapter_that_is_to_be_merged_is_refused_with_the_way_to_do_it(model: Path, tmp_path: Path) -> None:
    lora = {"adapter_path": str(save_adapter(tmp_path, model)), "merge_weights": True}
    (problem,) = backend().preflight(experiment(model, lora=lora))
    assert problem.startswith("lora.merge_weights: vLLM keeps an adapter beside the weights.")


# --- lengths, seeds, refusals ------------------------------------------------------------------------------------


def test_sampling_follows_the_seed_and_nothing_else(model: Path) -> None:
    asked = requests(*TEXTS, minimum=16)
    texts = {}
    for seed in (1, 2):
        with loaded(experiment(model, decoder=SAMPLING, random_seed=seed)) as engine:
            texts[seed] = ids(engine.generate(asked))
            engine.generate(asked[:2])
            assert ids(engine.generate(asked)) == texts[seed]
            assert ids(engine.generate(asked[3:])) == texts[seed][3:]
    assert texts[1] != texts[2]


def test_sampling_parameters_are_those_asked_for() -> None:
    from llenergymeasure.config.models import DecoderConfig
    from llenergymeasure.core.backends.vllm.sampling import sampling_parameters

    decoder = DecoderConfig(temperature=0.7, top_k=9, top_p=0.8, min_p=0.1, repetition_penalty=1.2)
    found = sampling_parameters(GenerationRequest(3, (1,), 20, 4), decoder, (7, 8), 42)
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.7, 9, 0.8, 0.1)
    assert (found.repetition_penalty, found.max_tokens, found.min_tokens) == (1.2, 20, 4)
    assert (found.stop_token_ids, found.ignore_eos, found.detokenize) == ([7, 8], True, False)
    greedy = sampling_parameters(GenerationRequest(3, (1,), 20, 4), DecoderConfig(do_sample=False), (7,), 42)
    assert (greedy.temperature, greedy.top_k, greedy.top_p, greedy.seed) == (0.0, 0, 1.0, None)


# --- instants and steps ------------------------------------------------------------------------------------------


class ShiftedClock(SystemClock):
    """The machine's clock with another origin."""

    def now(self) -> float:
        return super().now() - 1000.0


def test_instants_are_on_the_clock_that_the_engine_was_made_with(model: Path) -> None:
    from llenergymeasure.core.backends.vllm.backend import VLLMBackend

    clock = ShiftedClock()
    engine = VLLMBackend(clock)
    engine.load(experiment(model))
    try:
        before_s = clock.now()
        (one,) = engine.generate(requests("ab")).requests
        assert before_s - ROUNDING_S <= one.started_s <= clock.now()
    finally:
        engine.unload()


def test_a_second_pass_over_the_same_prompts_computes_them_again(model: Path) -> None:
    """Prefixes cached by an earlier call would make a later pass of the window cheaper than the first."""
    prompt = tuple(range(2, 102))
    with loaded(experiment(model, vllm={"block_size": 32, "enable_prefix_caching": True})) as engine:
        first, second = (engine.generate([GenerationRequest(0, prompt, 4, 4)]).steps for _ in range(2))
        shared = engine.generate([GenerationRequest(index, prompt, 4, 4) for index in range(8)]).steps
    assert [next(iter(steps or ())).prefill_tokens for steps in (first, second)] == [100, 100]
    assert sum(step.prefill_tokens for step in shared or ()) < 8 * 100  # within a call, sharing is the engine's affair


def test_a_request_that_is_pushed_out_of_a_full_cache_says_the_same_and_tells_it(model: Path) -> None:
    """Sixteen blocks of 32 tokens for four texts of 192."""
    asked = [GenerationRequest(index, tuple(range(2 + index, 66 + index)), 128, 128) for index in range(4)]
    small = {"passthrough_kwargs": {"num_gpu_blocks_override": 17}}
    with loaded(experiment(model, vllm={"block_size": 32, "enable_prefix_caching": False}, **small)) as engine:
        output = engine.generate(asked)
    assert ids(output) == pytorch_texts(model, asked, max_output_tokens=128)
    preemptions = [one.preemptions for one in output.requests]
    assert preemptions[0] == 0 < sum(preemptions)
    assert all(len(one.token_times_s or ()) == 128 for one in output.requests)


# --- the suite of all engines ------------------------------------------------------------------------------------


def test_the_vllm_backend_conforms(model: Path) -> None:
    assert check_backend(backend, experiment(model)) == []
