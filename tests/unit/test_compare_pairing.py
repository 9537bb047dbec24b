"""Which configurations of two sides belong together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llenergymeasure.exceptions import ComparisonError
from llenergymeasure.results.compare.pairing import pair_up, setting_differences
from llenergymeasure.results.compare.sides import Configuration, Side


def configuration(name: str, batch: int | None = None, **settings: Any) -> Configuration:
    """A configuration whose hash is its name."""
    return Configuration(name, name, {path: json.dumps(value) for path, value in settings.items()}, batch)


def side(label: str, *configurations: Configuration) -> Side:
    return Side(label, {entry.config_hash: entry for entry in configurations})


def pytorch(name: str, batch: int, **settings: Any) -> Configuration:
    return configuration(name, batch, **{"backend": "pytorch", "pytorch.batch_size": batch, **settings})


def vllm(name: str, batch: int, **settings: Any) -> Configuration:
    return configuration(
        name, batch, **{"backend": "vllm", "vllm.max_num_seqs": batch, "vllm.enforce_eager": False, **settings}
    )


def names(baseline: Side, candidate: Side, *ignore: str) -> list[tuple[str, str]]:
    return [(one.name, other.name) for one, other in pair_up(baseline, candidate, ignore).pairs]


def test_equal_configurations_belong_together_in_the_baselines_order() -> None:
    found = pair_up(
        side("a", pytorch("1", 1), pytorch("8", 8), pytorch("32", 32)), side("b", pytorch("64", 64), pytorch("8", 8))
    )
    assert [(one.name, other.name) for one, other in found.pairs] == [("8", "8")]
    assert [entry.name for entry in found.only_baseline] == ["1", "32"]
    assert [entry.name for entry in found.only_candidate] == ["64"]


def test_two_single_configurations_are_a_pair_however_they_differ() -> None:
    assert names(side("a", pytorch("x", 8)), side("b", vllm("y", 256))) == [("x", "y")]


def test_what_tells_the_sides_apart_as_a_whole_may_differ() -> None:
    """fp16 against bf16, batch by batch."""
    before = side("a", pytorch("f1", 1, precision="fp16"), pytorch("f8", 8, precision="fp16"))
    after = side("b", pytorch("b8", 8, precision="bf16"), pytorch("b16", 16, precision="bf16"))
    assert names(before, after) == [("f8", "b8")]


def test_where_a_configuration_is_in_both_nothing_is_guessed() -> None:
    before = side("a", pytorch("1", 1), pytorch("8", 8))
    after = side("b", pytorch("8", 8), pytorch("16", 16))
    assert names(before, after) == [("8", "8")]


def test_engines_are_compared_batch_by_batch() -> None:
    told = {"generation.eos_token_id": [2], "generation.pad_token_id": 0}  # by the one engine only
    before = side("a", pytorch("p1", 1, **told), pytorch("p8", 8, **told))
    after = side("b", vllm("v8", 8), vllm("v1", 1))
    assert names(before, after, "backend") == [("p1", "v1"), ("p8", "v8")]


def test_what_is_ignored_may_be_a_whole_section() -> None:
    before, after = side("a", configuration("x", n=1, **{"decoder.top_k": 5})), side("b", configuration("y", n=1))
    assert names(before, after, "decoder") == [("x", "y")]


@pytest.mark.parametrize(
    ("ignore", "said"),
    [
        ((), "a and b have no configuration in common, not even apart from precision."),
        (("precision",), "Name every setting that may differ between them with --ignore."),
        (("pytorch",), "a has several configurations that are equal but for pytorch: f1, and f8."),
        (("n",), "--ignore n: no such setting. There are backend, precision, pytorch.batch_size."),
    ],
)
def test_without_an_unambiguous_pair_it_says_what_to_name(ignore: tuple[str, ...], said: str) -> None:
    before = side("a", pytorch("f1", 1, precision="fp16"), pytorch("f8", 8, precision="fp16"))
    after = side("b", pytorch("b2", 2, precision="bf16"), pytorch("b16", 16, precision="bf16"))
    with pytest.raises(ComparisonError) as refused:
        pair_up(before, after, ignore)
    assert said in str(refused.value)


def test_sides_that_nothing_tells_apart_as_a_whole_have_no_pairs() -> None:
    before = side("a", pytorch("1", 1), pytorch("8", 8))
    with pytest.raises(
        ComparisonError, match="Name the settings that may differ between them: --ignore precision,backend"
    ):
        pair_up(before, side("b", pytorch("2", 2), pytorch("16", 16)))


def test_settings_that_differ_are_named_with_both_values() -> None:
    found = {
        entry.path: (entry.baseline, entry.candidate) for entry in setting_differences(pytorch("x", 8), vllm("y", 8))
    }
    assert found == {
        "backend": ('"pytorch"', '"vllm"'),
        "pytorch.batch_size": ("8", None),
        "vllm.max_num_seqs": (None, "8"),
        "vllm.enforce_eager": (None, "false"),
    }
