from __future__ import annotations

import pytest
from dataset_tokenizer import ByteTokenizer
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.config.models import SyntheticDatasetConfig
from llenergymeasure.datasets.loader import make_prompts, synthetic_identity
from llenergymeasure.exceptions import DatasetError


@given(length=st.integers(1, 300), bos=st.booleans(), seed=st.integers(0, 2**32))
def test_every_prompt_has_exactly_the_length_asked_for(length: int, bos: bool, seed: int) -> None:
    tokenizer = ByteTokenizer(bos=bos)
    prompts = make_prompts(SyntheticDatasetConfig(n=3, input_len=length, seed=seed), 3, tokenizer)
    assert [len(prompt.token_ids) for prompt in prompts] == [length] * 3
    assert not any(prompt.truncated for prompt in prompts)


def test_bos_is_where_the_tokenizer_puts_it_and_counts() -> None:
    (prompt,) = make_prompts(SyntheticDatasetConfig(n=1, input_len=8), 1, ByteTokenizer(bos=True, eos=True))
    assert prompt.token_ids[0] == 1
    assert prompt.token_ids[-1] == 2
    assert not {0, 1, 2} & set(prompt.token_ids[1:-1])


def test_no_other_special_id_occurs() -> None:
    (prompt,) = make_prompts(SyntheticDatasetConfig(n=1, input_len=5000), 1, ByteTokenizer(bos=False))
    assert set(prompt.token_ids) == set(range(3, 259))


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    config = SyntheticDatasetConfig(n=4, input_len=32, seed=7)
    tokenizer = ByteTokenizer()
    assert make_prompts(config, 4, tokenizer) == make_prompts(config, 4, tokenizer)
    other = make_prompts(SyntheticDatasetConfig(n=4, input_len=32, seed=8), 4, tokenizer)
    assert not {p.token_ids for p in other} & {p.token_ids for p in make_prompts(config, 4, tokenizer)}


def test_the_recipe_is_pinned() -> None:
    """Fails when the same parameters give other prompts: then `RECIPE_VERSION` has to go up."""
    config = SyntheticDatasetConfig(n=1, input_len=6, output_len=4, seed=42)
    (prompt,) = make_prompts(config, 1, ByteTokenizer())
    assert prompt.token_ids == (1, 28, 105, 218, 174, 237)
    assert synthetic_identity(config, 1).sha256 == "67dde83c4213cd008b47e7a6b21a3fa53336b83ac9eef5f3e1bb92ef096564e6"


def test_a_smaller_n_is_the_beginning_of_a_larger_one() -> None:
    tokenizer = ByteTokenizer()
    few = make_prompts(SyntheticDatasetConfig(n=3, input_len=16), 3, tokenizer)
    many = make_prompts(SyntheticDatasetConfig(n=50, input_len=16), 50, tokenizer)
    assert many[:3] == few


def test_prompts_differ_from_each_other() -> None:
    prompts = make_prompts(SyntheticDatasetConfig(n=200, input_len=16), 200, ByteTokenizer())
    assert len({prompt.token_ids for prompt in prompts}) == 200


def test_the_text_is_that_of_the_ids() -> None:
    tokenizer = ByteTokenizer()
    (prompt,) = make_prompts(SyntheticDatasetConfig(n=1, input_len=16), 1, tokenizer)
    assert prompt.text == tokenizer.decode(prompt.token_ids)


def test_a_length_below_the_special_tokens_is_refused_with_both_numbers() -> None:
    with pytest.raises(DatasetError, match=r"input_len = 1 is too short.* adds 2 special tokens"):
        make_prompts(SyntheticDatasetConfig(n=1, input_len=1), 1, ByteTokenizer(bos=True, eos=True))


def test_the_identity_knows_every_parameter_but_the_pool() -> None:
    base = {"n": 10, "input_len": 16, "output_len": 8, "seed": 1}
    identity = synthetic_identity(SyntheticDatasetConfig(**base), 5)
    assert identity.prompt_count == 5
    assert synthetic_identity(SyntheticDatasetConfig(**{**base, "n": 99}), 5) == identity
    for name in ("input_len", "output_len", "seed"):
        other = synthetic_identity(SyntheticDatasetConfig(**{**base, name: 3}), 5)
        assert other.sha256 != identity.sha256
