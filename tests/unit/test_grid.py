"""A study's description becomes the right experiments in the right order, and mistakes in it are named."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llenergymeasure.config.grid import (
    SkippedConfig,
    compute_study_design_hash,
    describe_skipped,
    expand_grid,
    resolve_study,
)
from llenergymeasure.config.loader import load_study_config
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.ssot import BATCH_SIZE_FIELD
from llenergymeasure.config.yaml_io import LoadedDocument, SourceMap
from llenergymeasure.domain.experiment import compute_measurement_config_hash
from llenergymeasure.exceptions import ConfigError


def _expand(**study: Any) -> list[ExperimentConfig]:
    experiments, skipped = expand_grid({"model": "gpt2", **study})
    assert skipped == []
    return experiments


def _study(folder: Path, text: str, name: str = "study.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def _config_error(study: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        expand_grid({"model": "gpt2", **study})
    return str(caught.value)


# What is spanned


def test_a_grid_is_the_product_in_the_order_of_the_file_with_the_last_key_fastest() -> None:
    experiments = _expand(sweep={"precision": ["fp16", "bf16"], "n": [1, 2, 3]})
    assert [(e.precision, e.n) for e in experiments] == list(itertools.product(["fp16", "bf16"], [1, 2, 3]))


def test_nested_keys_are_swept() -> None:
    experiments = _expand(decoder={"top_k": 7}, sweep={"decoder.temperature": [0.2, 0.8], "warmup.n_warmup": [1, 2]})
    assert [(e.decoder.temperature, e.warmup.n_warmup) for e in experiments] == [(0.2, 1), (0.2, 2), (0.8, 1), (0.8, 2)]
    assert {e.decoder.top_k for e in experiments} == {7}


def test_each_backend_gets_its_own_product_of_universal_and_own_keys() -> None:
    experiments = _expand(
        backend=["pytorch", "vllm"],
        sweep={"precision": ["fp16", "bf16"], "pytorch.batch_size": [1, 8, 16], "vllm.max_num_seqs": [64, 128]},
    )
    pytorch = [e for e in experiments if e.backend == "pytorch"]
    vllm = [e for e in experiments if e.backend == "vllm"]
    assert (len(pytorch), len(vllm)) == (6, 4)
    assert experiments == [*pytorch, *vllm]
    assert {e.pytorch.batch_size for e in pytorch if e.pytorch} == {1, 8, 16}
    assert {e.vllm.max_num_seqs for e in vllm if e.vllm} == {64, 128}
    assert all(e.vllm is None for e in pytorch)
    assert all(e.pytorch is None for e in vllm)


def test_the_list_of_backends_may_stand_in_the_sweep() -> None:
    study = {"precision": ["fp16", "bf16"]}
    assert _expand(sweep={"backend": ["pytorch", "vllm"], **study}) == _expand(backend=["pytorch", "vllm"], sweep=study)


def test_a_fixed_section_applies_to_its_own_backends_points_only() -> None:
    experiments = _expand(
        backend=["pytorch", "vllm"], pytorch={"attn_implementation": "eager"}, sweep={"precision": ["fp16", "bf16"]}
    )
    assert [(e.backend, e.pytorch is not None, e.vllm is not None) for e in experiments] == [
        ("pytorch", True, False),
        ("pytorch", True, False),
        ("vllm", False, False),
        ("vllm", False, False),
    ]


def test_a_scoped_key_adds_to_the_fixed_section() -> None:
    (experiment,) = _expand(pytorch={"attn_implementation": "eager"}, sweep={"pytorch.batch_size": [4]})
    assert experiment.pytorch is not None
    assert (experiment.pytorch.attn_implementation, experiment.pytorch.batch_size) == ("eager", 4)


def test_a_whole_section_may_be_swept_over_the_fixed_part() -> None:
    experiments = _expand(decoder={"top_k": 7}, sweep={"decoder": [{"temperature": 0.2}, {"preset": "creative"}]})
    assert [(e.decoder.top_k, e.decoder.temperature) for e in experiments] == [(7, 0.2), (7, 0.8)]


def test_null_is_a_value_to_sweep() -> None:
    experiments = _expand(sweep={"decoder.min_new_tokens": [None, 64], "pytorch.batch_size": [None, 2]})
    assert [e.decoder.min_new_tokens for e in experiments] == [None, None, 64, 64]


def test_keys_below_an_open_mapping_are_swept() -> None:
    experiments = _expand(passthrough_kwargs={"a": 1}, sweep={"passthrough_kwargs.b.c": [1, 2]})
    assert [e.passthrough_kwargs for e in experiments] == [{"a": 1, "b": {"c": 1}}, {"a": 1, "b": {"c": 2}}]


@pytest.mark.parametrize("key", ["dataset.output_len", "dataset.synthetic.output_len"])
@pytest.mark.parametrize("dataset", [{"n": 4}, {"synthetic": {"n": 4}}])
def test_a_synthetic_data_set_is_swept_in_either_form(key: str, dataset: dict[str, Any]) -> None:
    assert [e.max_output_tokens for e in _expand(dataset=dataset, sweep={key: [16, 32]})] == [16, 32]


def test_only_explicit_experiments_gives_exactly_those_over_the_fixed_part() -> None:
    experiments = _expand(n=7, experiments=[{"precision": "fp16"}, {"backend": "vllm", "n": 8}])
    assert experiments == [
        ExperimentConfig(model="gpt2", n=7, precision="fp16"),
        ExperimentConfig(model="gpt2", n=8, backend="vllm"),
    ]


def test_grid_and_explicit_experiments_together() -> None:
    experiments = _expand(sweep={"n": [1, 2]}, experiments=[{"n": 9, "pytorch": {"batch_size": 2}}])
    assert [e.n for e in experiments] == [1, 2, 9]


def test_an_explicit_experiment_takes_the_fixed_section_of_its_own_backend() -> None:
    experiments = _expand(
        vllm={"enforce_eager": True},
        experiments=[{"backend": "pytorch"}, {"backend": "vllm", "vllm": {"block_size": 16}}],
    )
    assert experiments[0].vllm is None
    assert experiments[1].vllm is not None
    assert (experiments[1].vllm.enforce_eager, experiments[1].vllm.block_size) == (True, 16)


def test_a_base_experiment_lies_under_the_fixed_part(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    _study(tmp_path / "parts", "version: 1\nmodel: base-model\nn: 5\ndecoder: {top_k: 3, top_p: 0.5}\n", "base.yaml")
    path = _study(tmp_path, "base: parts/base.yaml\ndecoder: {top_k: 9}\nsweep: {n: [1, 2]}\n")

    study = load_study_config(path)

    assert [(e.model, e.n, e.decoder.top_k, e.decoder.top_p) for e in study.experiments] == [
        ("base-model", 1, 9, 0.5),
        ("base-model", 2, 9, 0.5),
    ]


def test_points_say_whether_a_backend_was_named() -> None:
    assert "backend" not in _expand(sweep={"n": [1]})[0].model_fields_set
    assert "backend" not in _expand(experiments=[{"n": 1}])[0].model_fields_set
    assert "backend" in _expand(backend="pytorch", sweep={"n": [1]})[0].model_fields_set


def test_the_description_is_not_changed() -> None:
    raw = {
        "model": "gpt2",
        "backend": ["pytorch", "vllm"],
        "dataset": {"synthetic": {"n": 3}},
        "sweep": {"decoder": [{"top_k": 1}], "pytorch.batch_size": [1]},
        "experiments": [{"backend": "vllm", "dataset": {"synthetic": {"n": 2}}}],
    }
    before = copy.deepcopy(raw)
    expand_grid(raw)
    assert raw == before


_AXES = {
    "n": st.integers(9, 50),  # no batch is larger: those would be the same work
    "random_seed": st.integers(0, 50),
    "decoder.top_k": st.integers(0, 50),
    "decoder.temperature": st.sampled_from([0.1, 0.2, 0.5, 1.0]),
    "warmup.n_warmup": st.integers(1, 9),
    "pytorch.batch_size": st.integers(1, 9),
    "precision": st.sampled_from(["fp32", "fp16", "bf16"]),
}


@st.composite
def _sweeps(draw: st.DrawFn) -> dict[str, list[Any]]:
    keys = draw(st.lists(st.sampled_from(sorted(_AXES)), min_size=1, max_size=4, unique=True))
    return {key: draw(st.lists(_AXES[key], min_size=1, max_size=3, unique=True)) for key in keys}


def _get(config: ExperimentConfig, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


@settings(deadline=None, max_examples=50)
@given(sweep=_sweeps())
def test_any_grid_has_every_combination_once_in_product_order(sweep: dict[str, list[Any]]) -> None:
    experiments = _expand(sweep=sweep)

    assert len(experiments) == math.prod(len(values) for values in sweep.values())
    assert [tuple(_get(e, key) for key in sweep) for e in experiments] == list(itertools.product(*sweep.values()))


def test_ten_thousand_points_expand_to_ten_thousand_experiments() -> None:
    experiments = _expand(
        sweep={
            "precision": ["fp16", "bf16"],
            "n": list(range(10, 60)),
            "decoder.temperature": [i / 10 for i in range(1, 11)],
            "pytorch.batch_size": list(range(1, 11)),
        }
    )
    assert len({compute_measurement_config_hash(e) for e in experiments}) == 10_000


# What is skipped


@pytest.mark.parametrize("bad", [float("nan"), -1.0, "hot", True])
def test_an_invalid_point_is_skipped_with_its_reason_and_the_others_run(bad: Any) -> None:
    experiments, skipped = expand_grid({"model": "gpt2", "sweep": {"decoder.temperature": [0.5, bad]}})

    assert [e.decoder.temperature for e in experiments] == [0.5]
    (point,) = skipped
    assert isinstance(point, SkippedConfig)
    assert point.reason.startswith("decoder.temperature: must be")
    assert point.errors[0]["loc"] == ["decoder", "temperature"]
    assert point.raw_config["model"] == "gpt2"
    json.dumps(dataclasses.asdict(point), allow_nan=False)


def test_a_combination_that_cannot_run_is_skipped() -> None:
    experiments, skipped = expand_grid(
        {"model": "gpt2", "backend": ["pytorch", "vllm"], "sweep": {"precision": ["fp32", "fp16"]}}
    )
    assert [(e.backend, e.precision) for e in experiments] == [
        ("pytorch", "fp32"),
        ("pytorch", "fp16"),
        ("vllm", "fp16"),
    ]
    assert "precision: 'fp32' is not supported by backend='vllm'" in skipped[0].reason


def test_no_valid_point_at_all_is_an_error_that_counts_the_reasons() -> None:
    message = _config_error({"n": 0, "sweep": {"precision": ["fp16", "bf16"]}})
    assert "none of the study's 2 points is valid" in message
    assert "n: must be at least 1, got 0 (2×)" in message


def test_equal_points_run_once_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        experiments, _ = expand_grid({"model": "gpt2", "sweep": {"n": [1, 2, 1]}, "experiments": [{"n": 2}]})
    assert [e.n for e in experiments] == [1, 2]
    assert "2 of 4 points repeat an earlier one and run once" in caplog.text


def test_points_that_differ_only_in_where_results_go_are_equal() -> None:
    experiments, _ = expand_grid({"model": "gpt2", "sweep": {"output_dir": ["a", "b"]}})
    assert len(experiments) == 1


def test_a_sweep_beyond_all_reason_is_refused_before_it_is_spanned() -> None:
    values = list(range(1, 1002))
    message = _config_error({"sweep": {"n": values, "random_seed": values}})
    assert "1,002,001 points" in message


_SAME_WORK: list[dict[str, Any]] = [
    {"sweep": {"pytorch.batch_size": [None, 1]}},
    {"experiments": [{}, {"pytorch": {}}, {"pytorch": None}, {"pytorch": {"batch_size": 1, "num_processes": 1}}]},
    {"n": 1, "sweep": {"pytorch.batch_size": [1, 2, 3]}},
    {"n": 5, "pytorch": {"num_processes": 2}, "sweep": {"pytorch.batch_size": [3, 4, 100]}},
    {"sweep": {"pytorch.use_cache": [None, True], "pytorch.num_beams": [None, 1]}},
    {"decoder": {"temperature": 0.0}, "sweep": {"decoder.do_sample": [True, False]}},
    {"sweep": {"decoder": [{"preset": "deterministic"}, {"temperature": 0.0, "do_sample": False}]}},
    {"warmup": {"enabled": False}, "sweep": {"warmup.n_warmup": [1, 5]}},
    {"sweep": {"warmup.max_prompts": [10, 20]}},
    {"energy": {"backend": None}, "sweep": {"baseline.duration_seconds": [10.0, 30.0]}},
    {"n": 4, "sweep": {"dataset": [{"n": 4, "input_len": 8}, {"n": 9, "input_len": 8}]}},
    {"sweep": {"passthrough_kwargs": [None, {}]}},
    {"backend": "vllm", "sweep": {"vllm.tensor_parallel_size": [None, 1]}},
]


@pytest.mark.parametrize("study", _SAME_WORK, ids=str)
def test_points_that_do_the_same_work_run_once_however_they_are_written(study: dict[str, Any]) -> None:
    assert len(_expand(**study)) == 1


_OTHER_WORK: list[dict[str, Any]] = [
    {"n": 4, "sweep": {"pytorch.batch_size": [3, 4]}},
    {"n": 1, "backend": "vllm", "sweep": {"vllm.max_num_seqs": [1, 2]}},
    {"sweep": {"pytorch.torch_compile": [None, False]}},
    {"sweep": {"measurement.skip_first_seconds": [None, 0.0]}},
    {"sweep": {"passthrough_kwargs": [None, {"x": None}]}},
    {"sweep": {"energy.backend": [None, "auto"]}},
    {"n": 4, "sweep": {"dataset": [{"n": 4, "seed": 1}, {"n": 4, "seed": 2}]}},
]


@pytest.mark.parametrize("study", _OTHER_WORK, ids=str)
def test_points_that_do_other_work_are_kept_apart(study: dict[str, Any]) -> None:
    assert len(_expand(**study)) == 2


# Fields that go together


def test_a_group_spans_its_alternatives_and_nothing_between_them() -> None:
    modes: list[Any] = ["default", "reduce-overhead"]
    compiled = [{"pytorch.torch_compile": True, "pytorch.torch_compile_mode": mode} for mode in modes]
    experiments = _expand(sweep={"compile": [{}, *compiled], "pytorch.batch_size": [1, 4]})
    seen = [
        (e.backend_config.torch_compile, e.backend_config.torch_compile_mode, e.backend_config.batch)  # type: ignore[attr-defined]
        for e in experiments
    ]
    assert seen == [(on, mode, b) for on, mode in [(None, None), *((True, m) for m in modes)] for b in (1, 4)]


@pytest.mark.parametrize(
    "alternative",
    [
        {"decoder.temperature": 0.5, "n": 7},
        {"decoder": {"temperature": 0.5}, "n": 7},
        {"decoder": {"temperature": 0.5, "top_k": 3}, "n": 7, "dataset.synthetic.input_len": 9},
    ],
)
def test_a_group_sets_nested_fields_in_either_form(alternative: dict[str, Any]) -> None:
    fixed = {"dataset": {"synthetic": {"n": 50}}} if len(alternative) == 3 else {}
    plain, changed = _expand(**fixed, decoder={"top_p": 0.9}, sweep={"kind": [None, alternative]})
    assert (plain.decoder.temperature, changed.decoder.temperature, changed.decoder.top_p) == (1.0, 0.5, 0.9)
    assert changed.n == 7
    assert changed.max_input_tokens == (9 if fixed else 512)


def test_what_a_group_sets_in_a_section_is_for_the_points_of_that_backend() -> None:
    experiments = _expand(
        backend=["pytorch", "vllm"],
        sweep={"mode": [{}, {"pytorch.torch_compile": True}, {"vllm.enforce_eager": True, "precision": "fp16"}]},
    )
    assert [(e.backend, e.precision, e.pytorch is not None, e.vllm is not None) for e in experiments] == [
        ("pytorch", "bf16", False, False),
        ("pytorch", "bf16", True, False),
        ("vllm", "bf16", False, False),
        ("vllm", "fp16", False, True),
    ]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ([{}, {}], "none of its alternatives sets a field"),
        ([{}, {"pytorch.torch_compil": True}], "unknown field 'pytorch.torch_compil'. Did you mean"),
        ([{"precision.x": 1}], "unknown field; its beginning holds a plain value"),
        ([{"backend": "vllm"}], "backend: cannot be part of a group"),
        ([{"vllm.enforce_eager": True}], "'vllm' is not among the study's backends (pytorch)"),
        ([{"decoder": {"top_k": 1}, "decoder.top_p": 0.5}], "decoder and decoder.top_p overlap"),
        ([{"n": 1}], "sweep.n: overlaps with sweep.kind"),
    ],
)
def test_a_group_that_cannot_be_meant_is_refused(group: list[Any], message: str) -> None:
    refusal = _config_error({"sweep": {"n": [1, 2], "kind": group}})
    assert "sweep." in refusal
    assert message in refusal


def test_a_flag_may_not_contradict_a_group(tmp_path: Path) -> None:
    path = _study(tmp_path, "model: gpt2\nsweep: {kind: [{}, {precision: fp16}]}\n")
    with pytest.raises(ConfigError, match=r"override 'precision' contradicts sweep\.kind"):
        load_study_config(path, {"precision": "fp32"})


# How skipped points are told


def test_skipped_points_are_told_with_point_and_reason_and_alike_ones_folded() -> None:
    _, skipped = expand_grid(
        {
            "model": "gpt2",
            "backend": ["pytorch", "vllm"],
            "sweep": {"precision": ["fp32", "fp16"], "n": [10, 20], "decoder.temperature": [0.5, 3.0]},
            "experiments": [{"n": 0}],
        }
    )
    told = describe_skipped([dataclasses.asdict(point) for point in skipped])
    assert told[0] == "decoder.temperature=3.0 (8 points): decoder.temperature: must be at most 2, got 3.0"
    assert told[1].startswith("backend=vllm, decoder.temperature=0.5, precision=fp32 (2 points): precision: 'fp32' is")
    assert told[-1] == "n=0 (2 points): n: must be at least 1, got 0"
    assert sum(int(line.split("(")[1].split()[0]) if "points)" in line else 1 for line in told) == len(skipped)


def test_a_skipped_point_of_an_older_manifest_is_told_too() -> None:
    assert describe_skipped([{"raw_config": {"model": "gpt2", "n": 0}, "reason": "n: wrong"}]) == [
        "model=gpt2, n=0: n: wrong"
    ]


def test_a_skipped_point_keeps_no_secret() -> None:
    study = {"model": "gpt2", "n": 4, "passthrough_kwargs": {"token": "hf_abc"}, "sweep": {"precision": ["fp16"]}}
    with pytest.raises(ConfigError) as caught:
        expand_grid(study)
    assert "hf_abc" not in str(caught.value)
    kept = {"model": "gpt2", "sweep": {"passthrough_kwargs": [{"a": 1}, {"token": "hf_abc"}]}}
    _, (skipped,) = expand_grid(kept)
    assert "hf_abc" not in json.dumps(dataclasses.asdict(skipped))


# What is refused


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"sweep": {"pytorch.batchsize": [1]}}, "sweep.pytorch.batchsize: unknown field 'pytorch.batchsize'."),
        ({"sweep": {"pytorch.batchsize": [1]}}, "Did you mean 'pytorch.batch_size'?"),
        ({"sweep": {"precison": ["fp16"]}}, "sweep.precison: unknown field 'precison'. Did you mean 'precision'?"),
        ({"sweep": {"decoder.temprature": [0.5]}}, "Did you mean 'decoder.temperature'?"),
        ({"sweep": {"batch_size": [1]}}, "Did you mean 'pytorch.batch_size'?"),
        ({"sweep": {"decoder": [{"temprature": 1}]}}, "sweep.decoder: unknown field 'decoder.temprature'"),
        ({"sweep": {"precision.x": ["fp16"]}}, "sweep.precision.x"),
        ({"sweep": {"precision": "fp16"}}, "sweep.precision: must be a list of values, got 'fp16'"),
        ({"sweep": {"decoder": {"top_k": [1]}}}, "write `decoder.top_k: […]`"),
        ({"sweep": {"n": []}}, "sweep.n: the list is empty"),
        ({"sweep": {"n": None}}, "sweep.n: must be a list"),
        ({"sweep": {}}, "sweep: must map fields to lists"),
        ({"sweep": None}, "sweep: must map fields to lists"),
        ({"sweep": [1]}, "sweep: must map fields to lists"),
        ({"sweep": {"vllm.max_num_seqs": [1]}}, "sweep.vllm.max_num_seqs: 'vllm' is not among"),
        ({"backend": ["pytorch", "vlm"], "sweep": {"n": [1]}}, "backend: 'vlm' is unknown"),
        ({"backend": [], "sweep": {"n": [1]}}, "backend: the list is empty"),
        ({"backend": ["vllm"], "sweep": {"backend": ["pytorch"]}}, "sweep.backend: backend: is a list already"),
        ({"vllm": {}, "sweep": {"n": [1]}}, "vllm: config section provided but the study's backends are pytorch"),
        ({"dataset": "aienergyscore", "sweep": {"dataset.n": [1]}}, "the fixed part sets dataset: 'aienergyscore'"),
        ({"sweep": {"decoder": [{"top_k": 1}], "decoder.top_p": [1.0]}}, "overlaps with sweep.decoder.top_p"),
        ({"precison": "fp16", "sweep": {"n": [1]}}, "unknown field 'precison'"),
        ({"experiments": []}, "experiments: must be a list with at least one"),
        ({"experiments": {"n": 1}}, "experiments: must be a list with at least one"),
        ({"experiments": [3]}, "experiments[0]: must be a mapping"),
        ({"experiments": [{"n": 1}, {"decoder": {"topk": 1}}]}, "Did you mean 'experiments[1].decoder.top_k'?"),
        ({"sweep": {"n": [1]}, "execution": {"cycles": 3}}, "Did you mean 'execution.n_cycles'?"),
        ({"base": "nowhere.yaml", "sweep": {"n": [1]}}, "base: nowhere.yaml: no such file"),
        ({"base": 3, "sweep": {"n": [1]}}, "base: must be the path"),
    ],
)
def test_a_mistake_in_the_description_is_named(study: dict[str, Any], message: str) -> None:
    assert message in _config_error(study)


_KEYS = st.sampled_from(
    [
        "model",
        "n",
        "backend",
        "pytorch",
        "vllm",
        "decoder",
        "dataset",
        "synthetic",
        "sweep",
        "experiments",
        "execution",
        "base",
        "name",
        "version",
        "precision",
        "pytorch.batch_size",
        "decoder.temperature",
        "dataset.n",
        "passthrough_kwargs",
        "passthrough_kwargs.x",
        "preset",
        "lora",
        "..",
        "x",
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["pytorch", "vllm", "fp16", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(study=st.dictionaries(_KEYS, _VALUES, max_size=6), overrides=st.dictionaries(_KEYS, _VALUES, max_size=2))
def test_any_description_is_resolved_or_refused_with_a_message(
    study: dict[str, Any], overrides: dict[str, Any]
) -> None:
    document = LoadedDocument(study, SourceMap(), Path("study.yaml"))
    try:
        resolved = resolve_study(document, overrides)
    except (ConfigError, ValidationError):
        return
    assert resolved.experiments


def test_all_mistakes_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    path = _study(
        tmp_path,
        "model: m\nprecison: fp16\nsweep:\n  n: []\n  topk: [1]\n"
        "experiments:\n  - nn: 1\n    top_k: 1\n    decoder.top_k: 1\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_study_config(path)
    assert sorted(str(caught.value).splitlines()) == [
        f"{path}, line 2: unknown field 'precison'. Did you mean 'precision'?",
        f"{path}, line 4: sweep.n: the list is empty. Give it values, or remove the key.",
        f"{path}, line 5: sweep.topk: unknown field 'topk'. Did you mean 'decoder.top_k'?",
        f"{path}, line 7: unknown field 'experiments[0].nn'. Did you mean 'experiments[0].n'?",
        f"{path}, line 8: unknown field 'experiments[0].top_k'. Did you mean 'experiments[0].decoder.top_k'?",
        f"{path}, line 9: unknown field 'experiments[0].decoder.top_k'. Write it nested: `decoder: {{top_k: …}}`.",
    ]


def test_a_base_with_unknown_keys_or_that_is_a_study_is_refused(tmp_path: Path) -> None:
    base = _study(tmp_path, "model: m\n\nprecison: fp16\n", "base.yaml")
    path = _study(tmp_path, "base: base.yaml\nsweep: {n: [1]}\n")
    with pytest.raises(ConfigError, match=rf"{base}, line 3: unknown field 'precison'"):
        load_study_config(path)
    base.write_text("model: m\nsweep: {n: [1]}\n")
    with pytest.raises(ConfigError, match="is itself a study"):
        load_study_config(path)


# Flags over a study


_STUDY = "model: m\nbackend: [pytorch, vllm]\nname: mine\nexecution: {n_cycles: 2}\nsweep: {precision: [fp16, bf16]}\n"


def _batch_size(config: ExperimentConfig) -> tuple[str, Any]:
    return config.backend, _get(config, BATCH_SIZE_FIELD[config.backend])


def test_flags_apply_to_every_experiment(tmp_path: Path) -> None:
    study = load_study_config(_study(tmp_path, _STUDY), {"n": 5, "model": "other", "dataset": None})
    assert {(e.n, e.model) for e in study.experiments} == {(5, "other")}


def test_batch_size_is_applied_to_each_backends_own_setting(tmp_path: Path) -> None:
    study = load_study_config(_study(tmp_path, _STUDY), {"batch_size": 4})
    assert [_batch_size(e) for e in study.experiments] == [("pytorch", 4)] * 2 + [("vllm", 4)] * 2


def test_batch_size_is_applied_to_explicit_experiments_too(tmp_path: Path) -> None:
    path = _study(tmp_path, "model: m\nexperiments: [{backend: vllm}, {pytorch: {batch_size: 1}}]\n")
    study = load_study_config(path, {"batch_size": 4})
    assert [_batch_size(e) for e in study.experiments] == [("vllm", 4), ("pytorch", 4)]


def test_a_scoped_flag_applies_to_its_backend_only(tmp_path: Path) -> None:
    study = load_study_config(_study(tmp_path, _STUDY), {"pytorch.device": "cpu"})
    assert [e.pytorch.device if e.pytorch else None for e in study.experiments] == ["cpu", "cpu", None, None]


@pytest.mark.parametrize(
    ("sweep", "overrides"),
    [
        ("pytorch.batch_size: [1, 2]", {"batch_size": 4}),
        ("pytorch.batch_size: [1, 2]", {"pytorch.batch_size": 4}),
        ("precision: [fp16, bf16]", {"precision": "fp16"}),
        ("decoder.top_k: [1, 2]", {"decoder": {"top_p": 0.5}}),
        ("backend: [pytorch, vllm]", {"backend": "vllm"}),
    ],
)
def test_a_flag_that_contradicts_a_swept_key_is_refused(tmp_path: Path, sweep: str, overrides: dict[str, Any]) -> None:
    path = _study(tmp_path, f"model: m\nsweep:\n  {sweep}\n")
    with pytest.raises(ConfigError, match=f"override '{next(iter(overrides))}' contradicts"):
        load_study_config(path, overrides)


def test_a_flag_that_applies_to_no_experiment_is_refused(tmp_path: Path) -> None:
    path = _study(tmp_path, "model: m\nbackend: vllm\nsweep: {n: [1]}\n")
    with pytest.raises(ConfigError, match="override of pytorch"):
        load_study_config(path, {"pytorch.device": "cpu"})


def test_an_unknown_flag_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown field 'precison'"):
        load_study_config(_study(tmp_path, _STUDY), {"precison": "fp16"})


def test_the_backend_flag_beats_the_file_where_it_is_not_a_list(tmp_path: Path) -> None:
    path = _study(tmp_path, "model: m\nbackend: pytorch\nsweep: {n: [1]}\nexperiments: [{backend: pytorch, n: 2}]\n")
    study = load_study_config(path, {"backend": "vllm", "batch_size": 3})
    assert [(e.backend, e.vllm.max_num_seqs if e.vllm else None) for e in study.experiments] == [("vllm", 3)] * 2


# The study as a whole


def test_a_study_keeps_name_execution_hash_and_skipped_points(tmp_path: Path) -> None:
    path = _study(tmp_path, f"{_STUDY.replace('[fp16, bf16]', '[fp32, bf16]')}")
    study = load_study_config(path, {"execution.n_cycles": 5, "execution.cycle_order": "interleaved"})

    assert (study.name, study.execution.n_cycles, study.execution.cycle_order) == ("mine", 5, "interleaved")
    assert study.study_design_hash == compute_study_design_hash(study.experiments)
    assert [set(point) for point in study.skipped_configs] == [{"raw_config", "reason", "errors", "point"}]
    assert StudyConfig.model_validate_json(study.model_dump_json()) == study


def test_whether_the_file_set_the_cycles_can_be_told(tmp_path: Path) -> None:
    assert "n_cycles" in load_study_config(_study(tmp_path, _STUDY)).execution.model_fields_set
    plain = load_study_config(_study(tmp_path, "model: m\nsweep: {n: [1]}\n"))
    assert "n_cycles" not in plain.execution.model_fields_set


def test_wrong_execution_values_pass_through_as_pydantics_own_error(tmp_path: Path) -> None:
    path = _study(tmp_path, "model: m\nsweep: {n: [1]}\nexecution: {n_cycles: 0}\n")
    with pytest.raises(ValidationError) as caught:
        load_study_config(path)
    assert [error["loc"] for error in caught.value.errors()] == [("execution", "n_cycles")]


def test_the_design_hash_depends_on_the_experiments_and_their_order_only(tmp_path: Path) -> None:
    text = "model: m\nsweep: {n: [1, 2]}\n"
    plain = load_study_config(_study(tmp_path, text)).study_design_hash
    assert plain is not None
    assert len(plain) == 16
    assert load_study_config(_study(tmp_path, text + "name: x\nexecution: {n_cycles: 9}\n")).study_design_hash == plain
    assert load_study_config(_study(tmp_path, text.replace("[1, 2]", "[2, 1]"))).study_design_hash != plain
    spelled_out = "model: m\nexperiments: [{n: 1}, {n: 2, precision: bf16}]\n"
    assert load_study_config(_study(tmp_path, spelled_out)).study_design_hash == plain


def test_the_design_hash_is_pinned() -> None:
    """Changes only when what is measured by default really changes."""
    assert compute_study_design_hash([ExperimentConfig(model="gpt2")]) == "1f2ae2f01b9d2e54"
