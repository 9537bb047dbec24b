"""Which node gets which run."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_fakes import A100, H100, node
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.runners.cluster import Demand, Node
from llenergymeasure.study.gaps import Gaps
from llenergymeasure.study.placement import Placement, demand_of, forecast
from llenergymeasure.study.plan import PlannedRun, plan_runs
from study_fakes import study_of

MACHINE = UserConfig()


def placement_of(study: StudyConfig, machine: UserConfig = MACHINE, **known: str) -> Placement:
    return Placement(plan_runs(study), machine, known)


def vllm(gpus: int) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"model": f"m{gpus}", "backend": "vllm", "vllm": {"tensor_parallel_size": gpus}}
    )


def taken(placement: Placement, on: Node, *others: Node) -> PlannedRun:
    run = placement.take(on, [on, *others])
    assert run is not None
    return run


def test_runs_are_taken_in_order() -> None:
    placement = placement_of(study_of("a", "b", cycles=2, cycle_order="interleaved"))
    models = [taken(placement, node("x")).config.model for _ in range(4)]
    assert models == ["a", "b", "a", "b"]
    assert placement.take(node("x")) is None


def test_an_experiment_goes_to_a_node_that_has_its_gpus_and_the_others_go_on() -> None:
    placement = placement_of(StudyConfig(experiments=[vllm(4), vllm(1)]))
    assert taken(placement, node("small", gpus=2)).config.model == "m1"
    assert placement.take(node("small", gpus=2)) is None
    assert taken(placement, node("large", gpus=8)).config.model == "m4"


def test_the_cpu_serves_where_the_settings_say_so_and_a_gpu_is_not_asked_for() -> None:
    config = ExperimentConfig.model_validate({"model": "m", "pytorch": {"device": "cpu"}})
    assert demand_of(config, MACHINE) == Demand(0, on_cpu=True)
    run = taken(placement_of(StudyConfig(experiments=[config])), node("plain", gpus=0))
    assert run.config is config


def test_all_cycles_of_a_configuration_are_on_the_hardware_of_its_first() -> None:
    placement = placement_of(study_of("a", "b", cycles=2))
    old, new = node("old", gpu=A100), node("new", gpu=H100)
    first = taken(placement, old)
    assert taken(placement, new).config.model == "b"  # a's second cycle stays with A100
    assert taken(placement, node("old2", gpu=A100)).config_hash == first.config_hash


def test_hardware_of_earlier_results_holds() -> None:
    study = study_of("a", cycles=2)
    done, left = plan_runs(study)
    placement = Placement([left], MACHINE, {done.config_hash: A100})
    assert placement.take(node("new", gpu=H100)) is None
    assert taken(placement, node("old", gpu=A100)) == left


def test_hardware_without_a_result_is_forgotten_when_its_node_is_lost() -> None:
    placement = placement_of(study_of("a", cycles=2))
    spot = node("spot", gpu=A100)
    run = taken(placement, spot)
    placement.lose(run, spot)
    assert {taken(placement, node("x", gpu=H100)).cycle, taken(placement, node("y", gpu=H100)).cycle} == {1, 2}


def test_what_was_lost_is_tried_elsewhere_if_there_is_an_elsewhere() -> None:
    bad, good = node("bad"), node("good")
    placement = placement_of(study_of("a"))
    run = taken(placement, bad)
    placement.lose(run, bad)
    assert placement.was_lost(run)
    assert placement.take(bad, [bad, good]) is None
    assert placement.take(good, [bad, good]) == run
    alone = placement_of(study_of("a"))
    alone.lose(taken(alone, bad), bad)
    assert alone.take(bad, [bad]) is not None


@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.lists(st.sampled_from(["ok", "fail", "lose"]), max_size=40),
    st.lists(st.sampled_from([A100, H100]), min_size=1, max_size=5),
)
def test_every_run_ends_once_and_never_on_two_kinds_of_hardware(
    configs: int, cycles: int, fates: list[str], kinds: list[str]
) -> None:
    study = study_of(*[f"m{number}" for number in range(configs)], cycles=cycles)
    placement = placement_of(study)
    nodes = [node(f"n{number}", gpu=kind) for number, kind in enumerate(kinds)]
    ended: list[tuple[PlannedRun, Node, bool]] = []
    turn = 0
    while placement.left:
        before = len(ended)
        for each in nodes:
            if (run := placement.take(each, nodes)) is None:
                continue
            fate = fates[turn % len(fates)] if fates else "ok"
            turn += 1
            if fate == "lose" and not placement.was_lost(run):
                placement.lose(run, each)
                before = -1
            else:
                placement.end(run, measured=fate == "ok")
                ended.append((run, each, fate == "ok"))
        assert len(ended) > before  # somebody can always go on
    assert sorted(run.position for run, _, _ in ended) == list(range(1, configs * cycles + 1))
    measured = defaultdict(set)
    for run, where, is_measured in ended:
        if is_measured:
            measured[run.config_hash].add(where.gpu_names)
    assert all(len(kinds) == 1 for kinds in measured.values())


@pytest.mark.parametrize(("nodes", "expected_s"), [(1, 4 * 100 + 3 * 60), (2, 2 * 100 + 60), (4, 100), (8, 100)])
def test_a_forecast_adds_up_runs_and_gaps_on_the_busiest_node(nodes: int, expected_s: float) -> None:
    study = study_of("a", "b", "c", "d")
    there = [node(f"n{number}") for number in range(nodes)]
    steps = list(forecast(placement_of(study), there, Gaps(60.0, 300.0), lambda run, node: 100.0))
    assert max(step.end_s for step in steps) == expected_s
    assert len(steps) == 4


def test_a_node_with_a_longer_name_is_of_the_kind_that_was_named() -> None:
    machine = UserConfig.model_validate({"cluster": {"hardware": ["h100"]}})
    study = StudyConfig(experiments=[ExperimentConfig(model="a")], execution=ExecutionConfig())
    assert placement_of(study, machine).take(node("old", gpu=A100)) is None
    assert placement_of(study, machine).take(node("new", gpu=H100)) is not None
