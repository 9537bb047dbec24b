"""A last batch that is part empty is told, with a number that fills it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.same_work import partial_batch


def _config(n: int, **fields: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"model": "gpt2", "n": n, **fields})


@pytest.mark.parametrize(
    ("n", "section"),
    [
        (100, {}),
        (100, None),
        (96, {"batch_size": 8}),
        (8, {"batch_size": 8}),
        (7, {"num_processes": 3}),
        (96, {"batch_size": 8, "num_processes": 2}),
    ],
)
def test_full_batches_are_not_worth_a_word(n: int, section: dict[str, Any] | None) -> None:
    assert partial_batch(_config(n, pytorch=section)) is None


@pytest.mark.parametrize(
    ("n", "section", "advice"),
    [
        (100, {"batch_size": 8}, "Set n to 96."),
        (100, {"batch_size": 16}, "Set n to 96."),
        (100, {"batch_size": 8, "num_processes": 3}, "Set n to 96."),
        (104, {"batch_size": 8, "num_processes": 2}, "Set n to 96."),
        (3, {"batch_size": 8}, "Set n to 8, or pytorch.batch_size to 3."),
        (6, {"batch_size": 8, "num_processes": 2}, "Set n to 16, or pytorch.batch_size to 3."),
        (5, {"batch_size": 8, "num_processes": 2}, "Set n to 16, or pytorch.batch_size to 1."),
    ],
)
def test_the_advice_fills_every_batch(n: int, section: dict[str, Any], advice: str) -> None:
    told = partial_batch(_config(n, pytorch=section))
    assert told is not None
    assert told.endswith(advice)
    (wanted,) = re.findall(r"Set n to (\d+)", told)
    assert partial_batch(_config(int(wanted), pytorch=section)) is None
    for fitting in re.findall(r"batch_size to (\d+)", told):
        assert partial_batch(_config(n, pytorch={**section, "batch_size": int(fitting)})) is None


def test_a_pool_of_made_prompts_has_to_grow_too() -> None:
    told = partial_batch(_config(3, dataset={"n": 3}, pytorch={"batch_size": 8}))
    assert told is not None
    assert "Set n and dataset.n to 8, or pytorch.batch_size to 3." in told


def test_an_engine_that_refills_its_batch_has_no_last_one() -> None:
    assert partial_batch(_config(100, backend="vllm", vllm={"max_num_seqs": 8})) is None
