"""What introspection says of a parameter is what validation does: every field, generated from the models."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from llenergymeasure.config.base import COMBINATION_ERROR, set_dotted
from llenergymeasure.config.errors import describe_validation_error
from llenergymeasure.config.introspection import (
    ParamMetadata,
    get_all_params,
    get_backend_capabilities,
    get_backend_params,
    get_backend_specific_params,
    get_capability_matrix_markdown,
    get_experiment_config_schema,
    get_mutual_exclusions,
    get_param_options,
    get_param_skip_conditions,
    get_param_test_values,
    get_params_from_model,
    get_shared_params,
    get_validation_rules,
    list_all_param_paths,
)
from llenergymeasure.config.loader import load_experiment_config
from llenergymeasure.config.models import DecoderConfig, ExperimentConfig
from llenergymeasure.config.ssot import BACKENDS, DECODER_PARAM_SUPPORT, PRECISION_SUPPORT
from llenergymeasure.core.backends.registry import registry
from llenergymeasure.exceptions import ConfigError

PARAMS = get_params_from_model(ExperimentConfig)
every_param = pytest.mark.parametrize("param", PARAMS.values(), ids=list(PARAMS))

_WRONG_TYPE = {"int": "seven", "float": "warm", "bool": "perhaps", "str": 7, "dict": 7, "Literal": "no-such-option"}
_BEYOND = {
    "ge": lambda limit: limit - 1,
    "gt": lambda limit: limit,
    "le": lambda limit: limit + 1,
    "min_length": lambda _: "",
}
_LIMITED = [(path, name) for path, param in PARAMS.items() for name in param["constraints"]]


def _document(path: str, value: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"model": "gpt2"}
    section = path.split(".")[0]
    if section in BACKENDS:
        document["backend"] = section
    if section == "dataset" and path != "dataset":
        document["dataset"] = {"n": 100}
    target = document
    *parents, leaf = path.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
    target[leaf] = value
    return document


def _problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate(document)
    return describe_validation_error(caught.value)


def _accepts(document: dict[str, Any]) -> bool:
    try:
        ExperimentConfig.model_validate(document)
    except ValidationError:
        return False
    return True


@every_param
def test_a_wrong_type_is_refused_by_name(param: ParamMetadata) -> None:
    wrong = _WRONG_TYPE[param["type_str"].split("[")[0].split(" ")[0]]
    assert any(line.startswith(f"{param['path']}: ") for line in _problems(_document(param["path"], wrong)))


@pytest.mark.parametrize(("path", "name"), _LIMITED)
def test_a_value_beyond_its_limit_is_refused_by_name(path: str, name: str) -> None:
    beyond = _BEYOND[name](PARAMS[path]["constraints"][name])
    assert any(line.startswith(f"{path}: must") for line in _problems(_document(path, beyond)))


@every_param
def test_null_is_accepted_exactly_where_it_is_said_to_be(param: ParamMetadata) -> None:
    if param["path"] == "tensorrt.speculative_config.decoding_type" or not param["optional"]:
        assert any(line.startswith(f"{param['path']}: ") for line in _problems(_document(param["path"], None)))
        return
    try:
        ExperimentConfig.model_validate(_document(param["path"], None))
    except ValidationError as error:
        assert not [line for line in describe_validation_error(error) if line.startswith(f"{param['path']}: must")]  # noqa: PT017


@every_param
def test_a_misspelling_is_refused_and_the_right_name_suggested(param: ParamMetadata) -> None:
    *parents, leaf = param["path"].split(".")
    misspelt = ".".join([*parents, leaf + leaf[-1]])
    with pytest.raises(ConfigError) as caught:
        load_experiment_config(None, {"model": "gpt2", misspelt: 1})
    assert f"unknown field {misspelt!r}" in str(caught.value)
    assert f"Did you mean {param['path']!r}" in str(caught.value)


@every_param
def test_every_test_value_is_valid_for_its_parameter(param: ParamMetadata) -> None:
    for value in param["test_values"]:
        try:
            ExperimentConfig.model_validate(_document(param["path"], value))
        except ValidationError as error:  # fine by itself, but it may need another parameter beside it
            others = {e["type"] for e in error.errors()} - {COMBINATION_ERROR}
            assert others <= ({"missing"} if "speculative_config" in param["path"] else set())


@every_param
def test_options_are_all_there_is(param: ParamMetadata) -> None:
    field_options = get_param_options(param["path"])
    assert field_options == param["options"]
    if param["options"] is not None:
        assert param["test_values"] == param["options"]


@every_param
def test_every_parameter_says_what_it_does(param: ParamMetadata) -> None:
    assert len(param["description"]) > 10
    assert param["description"].endswith(".")
    assert param["backend_support"]
    assert param["name"] == param["path"].rpartition(".")[2]


def test_every_field_of_every_model_is_there() -> None:
    assert set(PARAMS) >= {name for name in ExperimentConfig.model_fields if name not in ("decoder", "warmup")} - {
        "baseline",
        "energy",
        "measurement",
        "pytorch",
        "vllm",
        "tensorrt",
        "lora",
    }
    for section in ("decoder", "warmup", "pytorch", "vllm", "tensorrt"):
        assert any(path.startswith(f"{section}.") for path in PARAMS)
    assert {path for path in PARAMS if path.startswith("decoder.")} == {
        f"decoder.{name}" for name in DecoderConfig.model_fields
    }


def test_shared_parameters_are_those_of_the_specification() -> None:
    assert set(get_shared_params()) == {
        "precision",
        "n",
        "max_input_tokens",
        "max_output_tokens",
        "random_seed",
        *(f"decoder.{name}" for name in DecoderConfig.model_fields),
    }


def test_agreed_test_values() -> None:
    assert get_param_test_values("n") == [10, 100, 500]
    assert get_param_test_values("max_input_tokens") == [64, 128, 256]
    assert get_param_test_values("max_output_tokens") == [32, 128, 256]
    assert get_param_test_values("precision") == ["fp32", "fp16", "bf16"]


def test_metadata_of_one_parameter() -> None:
    assert get_shared_params()["decoder.temperature"] == {
        "path": "decoder.temperature",
        "name": "temperature",
        "type_str": "float",
        "default": 1.0,
        "description": "Softmax temperature; 0 is greedy decoding.",
        "options": None,
        "test_values": [0.0, 1.0, 2.0],
        "constraints": {"ge": 0.0, "le": 2.0},
        "optional": False,
        "backend_support": ["pytorch", "vllm", "tensorrt"],
    }


def test_parameters_by_backend() -> None:
    everything = get_all_params()
    assert list(everything) == ["shared", "pytorch", "vllm", "tensorrt"]
    for backend in BACKENDS:
        params = get_backend_params(backend)
        assert everything[backend] == params
        assert all(param["default"] is None for param in params.values())
        assert all(param["backend_support"] == [backend] for param in params.values())
        assert get_backend_specific_params()[backend] == list(params)
        assert list_all_param_paths(backend) == [*get_shared_params(), *params]
    assert len(list_all_param_paths()) == len(set(list_all_param_paths()))


def test_what_does_not_exist_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Unknown backend 'mlx'"):
        get_backend_params("mlx")
    with pytest.raises(ValueError, match="Unknown backend"):
        list_all_param_paths("mlx")
    with pytest.raises(ValueError, match=r"Unknown parameter 'x\.y'"):
        get_param_options("x.y")
    with pytest.raises(ValueError, match="Unknown parameter"):
        get_param_test_values("x.y")


def test_the_answers_cannot_be_spoilt_by_their_readers() -> None:
    get_shared_params()["n"]["test_values"].append(-1)
    assert get_param_test_values("n") == [10, 100, 500]
    get_param_test_values("precision").append("int8")
    assert get_param_test_values("precision") == ["fp32", "fp16", "bf16"]


_EXCLUSIONS = [(left, right) for left, rights in get_mutual_exclusions().items() for right in rights]


@pytest.mark.parametrize(("left", "right"), _EXCLUSIONS)
def test_parameters_said_to_exclude_each_other_do(left: str, right: str) -> None:
    def values(path: str) -> list[Any]:
        return PARAMS[path]["test_values"] or ["some/name"]

    refused = []
    for left_value, right_value in itertools.product(values(left), values(right)):
        document = _document(left, left_value)
        target = document
        for parent in right.split(".")[:-1]:
            target = target.setdefault(parent, {})
        target[right.rpartition(".")[2]] = right_value
        if not _accepts(document):
            refused += [line for line in _problems(document) if "cannot be combined" in line]
    assert any(left.rpartition(".")[2] in line and right.rpartition(".")[2] in line for line in refused)


@pytest.mark.parametrize(("path", "condition"), get_param_skip_conditions().items())
def test_a_parameter_that_needs_another_is_refused_without_it_and_accepted_with_it(path: str, condition: str) -> None:
    needed = condition.removeprefix(f"{path} needs ")
    section = needed.rpartition(".")[0]
    value = (PARAMS[path]["test_values"] or ["some/name"])[0]
    outcomes = set()
    for setting in [None, *(PARAMS[needed]["test_values"] or ["some/name"])]:
        document = _document(path, value)
        if setting is not None:
            set_dotted(document, needed, setting)
        if _accepts(document):
            outcomes.add("accepted")
        elif any(line.startswith(f"{path}: ") and f"with {section}." in line for line in _problems(document)):
            outcomes.add("refused")
    assert outcomes == {"accepted", "refused"}


def test_validation_rules_cover_limits_sections_and_the_whole_experiment() -> None:
    rules = get_validation_rules()
    assert {"path": "n", "rule": "ge 1"} in rules
    assert any(rule["path"] == "pytorch" and "load_in_8bit" in rule["rule"] for rule in rules)
    assert any(rule["path"] == "experiment" and "precision" in rule["rule"] for rule in rules)


def test_capabilities_come_from_the_support_tables() -> None:
    capabilities = get_backend_capabilities()
    assert {backend: entry["precision"] for backend, entry in capabilities.items()} == PRECISION_SUPPORT
    assert {backend: entry["decoder_params"] for backend, entry in capabilities.items()} == DECODER_PARAM_SUPPORT
    table = get_capability_matrix_markdown().splitlines()
    assert table[0] == "| Feature | pytorch | vllm | tensorrt |"
    assert {line.count("|") for line in table} == {5}
    assert "| Precision | fp32, fp16, bf16 | fp16, bf16 | fp16, bf16 |" in table


def test_the_schema_is_the_models_own() -> None:
    assert get_experiment_config_schema() == ExperimentConfig.model_json_schema()


def test_backends_are_the_ones_an_experiment_may_name() -> None:
    assert get_param_options("backend") == BACKENDS
    assert set(BACKENDS) <= set(registry.names())
