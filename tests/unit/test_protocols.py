"""Who plays which role: structural types hold between the parts that are used together."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import ConstantMeter, StepEngine, VirtualClock, requests
from llenergymeasure.core.assemble import RecordCollector
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.window import BatchedEngine
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.protocols import (
    EnergyBackend,
    InferenceEngine,
    MetricsCollector,
    ModelLoader,
    ResultsRepository,
)
from llenergymeasure.results.persistence import DirectoryRepository
from result_samples import make_result


def test_the_parts_of_the_harness_play_their_roles(tmp_path: Path) -> None:
    engine = StepEngine(VirtualClock())
    assert isinstance(engine, ModelLoader)
    assert isinstance(BatchedEngine(engine, lambda _: None), InferenceEngine)
    assert isinstance(ConstantMeter(engine.clock), EnergyBackend)
    assert isinstance(NoEnergyBackend(engine.clock), EnergyBackend)
    assert isinstance(RecordCollector(), MetricsCollector)
    assert isinstance(DirectoryRepository(tmp_path), ResultsRepository)


def test_a_batched_engine_tells_of_each_batch_and_returns_all_outputs_in_order() -> None:
    told: list[int] = []
    engine = BatchedEngine(
        StepEngine(VirtualClock(), batch_size=2), lambda produced: told.append(len(produced.requests))
    )
    assert [output.index for output in engine.run(requests(5)).requests] == [0, 1, 2, 3, 4]
    assert told == [2, 2, 1]


def test_a_repository_gives_back_what_it_was_given_and_never_overwrites(tmp_path: Path) -> None:
    repository, result = DirectoryRepository(tmp_path), make_result()
    first, second = repository.save(result), repository.save(result)
    assert first != second
    assert repository.load(first) == repository.load(second) == result
    assert repository.load(first.relative_to(tmp_path)) == result


def test_a_repository_says_what_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match="absent"):
        DirectoryRepository(tmp_path).load(Path("absent"))
