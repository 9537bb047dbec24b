"""Files, flags and machine defaults become one experiment; every mistake is named with its place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llenergymeasure.config.errors import describe_validation_error, is_study_document
from llenergymeasure.config.loader import (
    deep_merge,
    load_experiment_config,
    load_study_config,
    with_overrides,
)
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.yaml_io import load_document
from llenergymeasure.exceptions import ConfigError


def _file(folder: Path, text: str, name: str = "experiment.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_beat_the_file_and_the_file_beats_machine_defaults(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: gpt2\nn: 10\nprecision: fp16\noutput_dir: from-file\n")

    config = load_experiment_config(path, {"n": 20}, {"output_dir": "from-machine"})

    assert (config.n, config.precision, config.output_dir) == (20, "fp16", "from-file")
    assert load_experiment_config(None, {"model": "m"}, {"output_dir": "from-machine"}).output_dir == "from-machine"


def test_an_override_of_none_is_no_override(tmp_path: Path) -> None:
    assert load_experiment_config(_file(tmp_path, "model: gpt2\nn: 10\n"), {"n": None}).n == 10


def test_dotted_overrides_nest_and_keep_their_neighbours(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: gpt2\npytorch: {batch_size: 1, use_cache: false}\n")

    config = load_experiment_config(path, {"pytorch.batch_size": 8, "decoder.temperature": 0.5})

    assert config.pytorch is not None
    assert (config.pytorch.batch_size, config.pytorch.use_cache, config.decoder.temperature) == (8, False, 0.5)


@pytest.mark.parametrize(
    ("backend", "section", "field"),
    [
        ("pytorch", "pytorch", "batch_size"),
        ("vllm", "vllm", "max_num_seqs"),
        ("tensorrt", "tensorrt", "max_batch_size"),
    ],
)
def test_batch_size_means_the_batch_setting_of_the_chosen_backend(
    tmp_path: Path, backend: str, section: str, field: str
) -> None:
    from_flag = load_experiment_config(_file(tmp_path, "model: m\n"), {"backend": backend, "batch_size": 4})
    from_file = load_experiment_config(_file(tmp_path, f"model: m\nbackend: {backend}\n"), {"batch_size": 4})

    assert getattr(getattr(from_flag, section), field) == 4
    assert from_file == from_flag


def test_whether_somebody_named_a_backend_can_be_told(tmp_path: Path) -> None:
    assert "backend" not in load_experiment_config(_file(tmp_path, "model: m\n")).model_fields_set
    assert "backend" in load_experiment_config(_file(tmp_path, "model: m\nbackend: pytorch\n")).model_fields_set
    assert "backend" in load_experiment_config(None, {"model": "m", "backend": "pytorch"}).model_fields_set


def test_a_synthetic_data_set_can_be_overridden_in_either_form(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: m\ndataset: {synthetic: {n: 8, output_len: 16}}\n")

    assert load_experiment_config(path, {"dataset.n": 4}).n == 4
    assert load_experiment_config(path, {"dataset.synthetic.output_len": 32}).max_output_tokens == 32
    assert load_experiment_config(path, {"dataset": "aienergyscore"}).dataset == "aienergyscore"


def test_the_version_key_is_dropped(tmp_path: Path) -> None:
    assert load_experiment_config(_file(tmp_path, "version: '2.0'\nmodel: gpt2\n")).model == "gpt2"


def test_json_works_like_yaml(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"model": "gpt2", "decoder": {"top_k": 5}}', "experiment.json")
    assert load_experiment_config(path).decoder.top_k == 5
    assert ExperimentConfig.from_yaml(path).decoder.top_k == 5


def test_all_unknown_keys_are_reported_at_once_with_line_and_suggestion(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        "model: gpt2\n"
        "decoder:\n"
        "  temprature: 1\n"
        "precison: fp16\n"
        "batch_size: 8\n"
        "dataset: {synthetic: {n: 3, inputlen: 4}}\n"
        "pytorch: {batch-size: 3}\n"
        "decoder.top_p: 0.5\n"
        "execution: {}\n"
        "zzzzzzzz: 1\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment_config(path)

    assert str(caught.value).splitlines() == [
        f"{path}, line 3: unknown field 'decoder.temprature'. Did you mean 'decoder.temperature'?",
        f"{path}, line 4: unknown field 'precison'. Did you mean 'precision'?",
        f"{path}, line 5: unknown field 'batch_size'. Did you mean 'pytorch.batch_size'?",
        f"{path}, line 6: unknown field 'dataset.synthetic.inputlen'. Did you mean 'dataset.synthetic.input_len'?",
        f"{path}, line 7: unknown field 'pytorch.batch-size'. Did you mean 'pytorch.batch_size'?",
        f"{path}, line 8: unknown field 'decoder.top_p'. Write it nested: `decoder: {{top_p: …}}`.",
        f"{path}, line 9: unknown field 'execution': it belongs to a study, which has sweep: or experiments:.",
        f"{path}, line 10: unknown field 'zzzzzzzz'.",
        "8 problems; nothing was run.",
    ]


def test_an_unknown_override_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"unknown field 'decoder.temprature'. Did you mean 'decoder.temperature'\?"):
        load_experiment_config(None, {"model": "m", "decoder.temprature": 1.0})


@pytest.mark.parametrize("overrides", [{"decoder": {"top_k": 1}, "decoder.top_k": 2}, {"n": 1, "n.x": 2}])
def test_overrides_that_claim_the_same_field_are_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="override"):
        load_experiment_config(None, {"model": "m", **overrides})


def test_machine_settings_other_than_the_output_directory_never_enter_an_experiment() -> None:
    with pytest.raises(ConfigError, match=r"\['n'\] cannot enter an experiment"):
        load_experiment_config(None, {"model": "m"}, {"n": 5, "output_dir": "x"})


def test_wrong_values_pass_through_as_pydantics_own_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        load_experiment_config(_file(tmp_path, "model: gpt2\nn: 0\nprecision: fp61\n"))
    assert {error["loc"] for error in caught.value.errors()} == {("n",), ("precision",)}


def test_a_missing_model_is_a_validation_error() -> None:
    with pytest.raises(ValidationError, match="model"):
        load_experiment_config(None, {"n": 5})


def test_a_study_is_told_from_an_experiment_and_refused_as_one(tmp_path: Path) -> None:
    assert is_study_document({"sweep": {}})
    assert is_study_document({"experiments": []})
    assert not is_study_document({"model": "m", "execution": {}})
    with pytest.raises(ConfigError, match="this is a study"):
        load_experiment_config(_file(tmp_path, "model: m\nsweep: {n: [1]}\n"))


def test_an_experiment_file_is_a_study_of_one(tmp_path: Path) -> None:
    study = load_study_config(_file(tmp_path, "model: gpt2\nn: 5\n"))
    assert study.experiments == [ExperimentConfig(model="gpt2", n=5)]


def test_problems_are_told_in_plain_english_with_their_lines(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        "model: 7\nn: 0\nprecision: fp61\ndecoder:\n  temperature: hot\n  top_p: .nan\n"
        "dataset:\n  synthetic: {n: yes}\nvllm: []\nwarmup: {cv_threshold: 0.6}\nbaseline: {enabled: maybe}\n"
        "random_seed: 4294967296\n",
    )
    with pytest.raises(ValidationError) as caught:
        load_experiment_config(path)

    assert describe_validation_error(caught.value, load_document(path)) == [
        f"{path}, line 1: model: must be text, got 7. Put it in quotes if it is meant as text",
        f"{path}, line 2: n: must be at least 1, got 0",
        f"{path}, line 3: precision: must be one of fp32, fp16, bf16, got 'fp61' (text). Did you mean 'fp16'?",
        f"{path}, line 5: decoder.temperature: must be a number, got 'hot' (text)",
        f"{path}, line 6: decoder.top_p: must be a finite number, got nan",
        f"{path}, line 8: dataset.n: must be a whole number, got True (a switch)",
        f"{path}, line 9: vllm: must be a mapping of its fields, got [] (a list)",
        f"{path}, line 10: warmup.cv_threshold: must be at most 0.5, got 0.6",
        f"{path}, line 11: baseline.enabled: must be true or false, got 'maybe' (text)",
        f"{path}, line 12: random_seed: must be at most 4294967295, got 4294967296",
    ]


def test_each_combination_problem_has_the_line_of_its_own_field(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: m\nbackend: vllm\nprecision: fp32\npytorch:\n  batch_size: 1\n")
    with pytest.raises(ValidationError) as caught:
        load_experiment_config(path)

    lines = describe_validation_error(caught.value, load_document(path))
    assert len(lines) == 2
    assert any(line.startswith(f"{path}, line 3: precision: 'fp32'") for line in lines)
    assert any(line.startswith(f"{path}, line 4: pytorch: config section") for line in lines)


def test_a_problem_of_a_nested_section_has_its_line(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: m\npytorch:\n  load_in_4bit: true\n  load_in_8bit: true\n")
    with pytest.raises(ValidationError) as caught:
        load_experiment_config(path)

    (line,) = describe_validation_error(caught.value, load_document(path))
    assert line.startswith(f"{path}, line 4: pytorch.load_in_8bit: True cannot be combined with")


def test_a_value_from_a_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: m\nn: 5\n")
    with pytest.raises(ValidationError) as caught:
        load_experiment_config(path, {"n": 0})

    document = load_document(path)
    assert describe_validation_error(caught.value, document, {"n": "-n"}) == ["-n: n: must be at least 1, got 0"]
    assert describe_validation_error(caught.value) == ["n: must be at least 1, got 0"]


def test_a_config_can_be_changed_by_validating_it_anew() -> None:
    config = ExperimentConfig.model_validate({"model": "m", "decoder": {"top_k": 5}, "n": 3})

    changed = with_overrides(config, {"decoder.temperature": 0.5, "batch_size": 2, "n": None})

    assert (changed.decoder.top_k, changed.decoder.temperature, changed.n) == (5, 0.5, 3)
    assert changed.pytorch is not None
    assert changed.pytorch.batch_size == 2
    assert config.pytorch is None


def test_deep_merge_of_nested_mappings() -> None:
    assert deep_merge({"a": {"x": 1, "y": [1]}, "b": 1}, {"a": {"y": [2]}, "c": None}) == {
        "a": {"x": 1, "y": [2]},
        "b": 1,
        "c": None,
    }


_TREES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
_MAPPINGS = st.dictionaries(st.sampled_from("abcd"), _TREES, max_size=4)


def _leaves(tree: Any, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(tree, dict) and tree:
        return {path: leaf for key, value in tree.items() for path, leaf in _leaves(value, (*at, key)).items()}
    return {at: tree}


@given(base=_MAPPINGS, overlay=_MAPPINGS)
def test_deep_merge_changes_neither_argument_and_shares_nothing_with_them(
    base: dict[str, Any], overlay: dict[str, Any]
) -> None:
    before = copy.deepcopy((base, overlay))
    merged = deep_merge(base, overlay)
    for value in _leaves(merged).values():
        if isinstance(value, list):
            value.append("changed later")
    assert (base, overlay) == before


@given(base=_MAPPINGS, overlay=_MAPPINGS)
def test_deep_merge_lets_every_value_of_the_overlay_win_and_keeps_the_rest(
    base: dict[str, Any], overlay: dict[str, Any]
) -> None:
    merged = deep_merge(base, overlay)
    found = _leaves(merged)
    for path, leaf in _leaves(overlay).items():
        if leaf != {}:
            assert found[path] == leaf
    assert set(merged) == set(base) | set(overlay)
    assert deep_merge(merged, overlay) == merged


@given(tree=_MAPPINGS)
def test_deep_merge_has_the_empty_mapping_as_its_identity(tree: dict[str, Any]) -> None:
    assert deep_merge(tree, {}) == tree
    assert deep_merge({}, tree) == tree


def test_very_many_unknown_keys_are_counted_and_the_first_hundred_told(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: gpt2\n" + "".join(f"key{i}: 1\n" for i in range(20_000)))
    with pytest.raises(ConfigError) as caught:
        load_experiment_config(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}, line 2: unknown field 'key0'."
    assert lines[99].startswith(f"{path}, line 101: unknown field 'key99'.")
    assert lines[100:] == ["… and 19,900 more", "20000 problems; nothing was run."]


def test_a_sweep_of_more_keys_than_there_are_fields_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: gpt2\nsweep:\n" + "".join(f"  key{i}: [1]\n" for i in range(2000)))
    with pytest.raises(ConfigError, match="sweep: has 2,000 keys; 1000 is the most"):
        load_study_config(path)


def test_a_study_beyond_all_reason_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, "model: gpt2\nsweep: {n: [1]}\nexecution: {n_cycles: 1000000000}\n")
    with pytest.raises(ValidationError) as caught:
        load_study_config(path)
    assert describe_validation_error(caught.value) == ["execution.n_cycles: must be at most 100000, got 1000000000"]
