from __future__ import annotations

import json

import pytest

from llenergymeasure.builtin_models import builtin_models, packaged_files
from llenergymeasure.exceptions import ConfigError


def test_there_is_one_small_model_and_two_of_real_sizes() -> None:
    assert builtin_models() == ("builtin/tiny-llama", "builtin/llama-1b", "builtin/llama-8b")


@pytest.mark.parametrize("model", ["builtin/tiny-lama", "builtin/", "builtin/../secrets", "builtin/tiny_llama"])
def test_an_unknown_name_lists_the_known_ones(model: str) -> None:
    with pytest.raises(ConfigError, match=r"no built-in model .* There are: builtin/tiny-llama"):
        packaged_files(model)


def test_a_misspelt_name_is_guessed() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'builtin/tiny-llama'\?"):
        packaged_files("builtin/tiny-lama")


def test_the_configuration_is_a_llama_with_grouped_queries_and_a_long_context() -> None:
    config = json.loads((packaged_files("builtin/tiny-llama") / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_attention_heads"] == 2 * config["num_key_value_heads"]
    assert config["max_position_embeddings"] >= 2048


def test_vocabulary_and_special_tokens_agree_in_all_files() -> None:
    folder = packaged_files("builtin/tiny-llama")
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    ids = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}

    assert len(tokenizer["model"]["vocab"]) == config["vocab_size"]
    assert settings["model_max_length"] == config["max_position_embeddings"]
    special = {kind: ids[settings[f"{kind}_token"]] for kind in ("pad", "bos", "eos")}
    assert len(set(special.values())) == 3
    for kind, token_id in special.items():
        assert config[f"{kind}_token_id"] == generation[f"{kind}_token_id"] == token_id
