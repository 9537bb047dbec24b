"""The models refuse what cannot run, guess nothing, and survive a round trip."""

from __future__ import annotations

import math
import multiprocessing
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from llenergymeasure.config.backend_configs import PyTorchConfig, TensorRTConfig, VLLMConfig
from llenergymeasure.config.base import field_paths, set_dotted
from llenergymeasure.config.errors import describe_validation_error, unknown_keys
from llenergymeasure.config.introspection import get_params_from_model
from llenergymeasure.config.models import (
    BaselineConfig,
    DecoderConfig,
    EnergyConfig,
    ExecutionConfig,
    ExperimentConfig,
    LoRAConfig,
    MeasurementConfig,
    StudyConfig,
    SyntheticDatasetConfig,
    WarmupConfig,
    experiment_title,
)
from llenergymeasure.config.ssot import OTHER_NAMES, OTHER_VALUES

_NAMED_VALUES = ("precision", "backend", "pytorch.device", "pytorch.attn_implementation")


def test_defaults_are_those_of_the_specification() -> None:
    config = ExperimentConfig(model="gpt2")

    assert (config.backend, config.n, config.dataset, config.precision) == ("pytorch", 100, "aienergyscore", "bf16")
    assert (config.random_seed, config.max_input_tokens, config.max_output_tokens) == (42, 512, 128)
    assert config.decoder == DecoderConfig(
        temperature=1.0, do_sample=True, top_k=50, top_p=1.0, repetition_penalty=1.0, min_p=None, min_new_tokens=None
    )
    assert config.warmup == WarmupConfig(
        enabled=True,
        n_warmup=5,
        thermal_floor_seconds=60.0,
        convergence_detection=False,
        cv_threshold=0.05,
        max_prompts=20,
        window_size=5,
        min_prompts=5,
    )
    assert config.baseline == BaselineConfig(enabled=True, duration_seconds=30.0)
    assert config.energy == EnergyConfig(backend="auto")
    assert config.measurement == MeasurementConfig(
        min_duration_seconds=None, skip_first_seconds=None, skip_last_seconds=None, full_batch_only=False
    )
    assert (config.pytorch, config.vllm, config.tensorrt, config.lora, config.passthrough_kwargs) == (None,) * 5
    assert (config.revision, config.trust_remote_code, config.output_dir) == (None, False, None)


def test_every_backend_field_defaults_to_the_engines_own_default() -> None:
    for section in (PyTorchConfig, VLLMConfig, TensorRTConfig):
        assert section().model_dump(exclude_none=True) == {}


@pytest.mark.parametrize(
    "model", [ExperimentConfig, DecoderConfig, PyTorchConfig, VLLMConfig, TensorRTConfig, StudyConfig, ExecutionConfig]
)
def test_unknown_keys_are_refused(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="no_such_key"):
        model.model_validate({"no_such_key": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", True),
        ("n", "100"),
        ("n", 100.0),
        ("n", 0),
        ("trust_remote_code", 1),
        ("trust_remote_code", "false"),
        ("model", ""),
        ("model", "   "),
        ("model", 7),
        ("random_seed", -1),
        ("random_seed", 2**32),
        ("dataset", 5),
        ("dataset", None),
    ],
)
def test_nothing_is_coerced_into_place(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({"model": "gpt2", field: value})

    assert {error["loc"][0] for error in caught.value.errors()} == {field}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("model", "field"),
    [
        (DecoderConfig, "temperature"),
        (WarmupConfig, "cv_threshold"),
        (BaselineConfig, "duration_seconds"),
        (MeasurementConfig, "min_duration_seconds"),
        (VLLMConfig, "gpu_memory_utilization"),
        (ExecutionConfig, "experiment_timeout_seconds"),
    ],
)
def test_a_float_is_finite(model: type[BaseModel], field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        model.model_validate({field: value})


def test_an_integer_may_stand_for_a_float() -> None:
    assert DecoderConfig.model_validate({"temperature": 0}).temperature == 0.0


def test_a_config_cannot_be_changed_after_validation() -> None:
    config = ExperimentConfig(model="gpt2")
    with pytest.raises(ValidationError, match="frozen"):
        config.n = 0  # type: ignore[misc]


@pytest.mark.parametrize(("seconds", "valid"), [(0, True), (0.1, False), (29.9, False), (30, True), (600, True)])
def test_the_thermal_floor_is_off_or_long_enough(seconds: float, valid: bool) -> None:
    if valid:
        assert WarmupConfig(thermal_floor_seconds=seconds).thermal_floor_seconds == seconds
    else:
        with pytest.raises(ValidationError, match=r"thermal_floor_seconds.*30 or more, or 0"):
            WarmupConfig(thermal_floor_seconds=seconds)


@pytest.mark.parametrize("field", ["window_size", "min_prompts", "n_warmup"])
def test_warmup_bounds_fit_into_max_prompts(field: str) -> None:
    settling = {"convergence_detection": True, "max_prompts": 10}
    assert WarmupConfig.model_validate({**settling, field: 10})
    with pytest.raises(ValidationError, match=rf"warmup.{field}: 11 exceeds warmup.max_prompts=10"):
        WarmupConfig.model_validate({**settling, field: 11})


def test_a_fixed_number_of_warmups_has_no_bound() -> None:
    assert WarmupConfig(n_warmup=11, max_prompts=10).n_warmup == 11


def test_a_preset_fills_what_was_left_out() -> None:
    assert DecoderConfig(preset="deterministic").is_deterministic
    assert (DecoderConfig(preset="standard").temperature, DecoderConfig(preset="standard").top_p) == (1.0, 0.95)
    creative = DecoderConfig(preset="creative")
    assert (creative.temperature, creative.top_p, creative.repetition_penalty) == (0.8, 0.9, 1.1)
    assert DecoderConfig(preset="factual").temperature == 0.3


def test_an_explicit_field_wins_over_the_preset_even_at_its_default_and_after_a_round_trip() -> None:
    decoder = DecoderConfig(preset="factual", temperature=1.0)

    assert decoder.temperature == 1.0
    assert DecoderConfig.model_validate(decoder.model_dump()).temperature == 1.0
    assert DecoderConfig.model_validate(decoder.model_dump(exclude_unset=True)) == decoder


@pytest.mark.parametrize(
    ("fields", "deterministic"),
    [({}, False), ({"temperature": 0.0}, True), ({"do_sample": False}, True), ({"temperature": 0.1}, False)],
)
def test_deterministic_means_greedy(fields: dict[str, Any], deterministic: bool) -> None:
    assert DecoderConfig(**fields).is_deterministic is deterministic


@pytest.mark.parametrize("form", [{"synthetic": {"n": 7, "output_len": 9}}, {"n": 7, "output_len": 9}])
def test_a_synthetic_data_set_sets_the_prompt_count_and_token_limits(form: dict[str, Any]) -> None:
    config = ExperimentConfig.model_validate({"model": "gpt2", "dataset": form})

    assert config.dataset == SyntheticDatasetConfig(n=7, input_len=512, output_len=9, seed=42)
    assert (config.n, config.max_input_tokens, config.max_output_tokens) == (7, 512, 9)


def test_an_experiment_may_take_fewer_prompts_than_the_pool_holds() -> None:
    assert ExperimentConfig(model="gpt2", n=5, dataset=SyntheticDatasetConfig(n=7)).n == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 8}, "n: 8 prompts asked for, but dataset.n=7"),
        ({"max_input_tokens": 100}, "max_input_tokens: 100 contradicts dataset.input_len=512"),
        ({"max_output_tokens": 100}, "max_output_tokens: 100 contradicts dataset.output_len=128"),
    ],
)
def test_a_limit_that_contradicts_the_synthetic_data_set_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExperimentConfig.model_validate({"model": "gpt2", "dataset": {"n": 7}, **fields})


def test_an_error_in_a_synthetic_data_set_speaks_of_that_form_only() -> None:
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({"model": "gpt2", "dataset": {"n": "many"}})

    assert [error["loc"] for error in caught.value.errors()] == [("dataset", "synthetic", "n")]


@pytest.mark.parametrize("fields", [{}, {"adapter_id": "a/b", "adapter_path": "/c"}])
def test_an_adapter_comes_from_exactly_one_place(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="adapter_id"):
        LoRAConfig.model_validate(fields)


def test_a_study_has_at_least_one_experiment() -> None:
    with pytest.raises(ValidationError, match="experiments"):
        StudyConfig(experiments=[])


def _reads_back(config: ExperimentConfig) -> bool:
    return ExperimentConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder": {"preset": "creative", "min_new_tokens": 16}},
        {"dataset": {"n": 3, "input_len": 16, "output_len": 8}},
        {"energy": {"backend": None}},
        {"pytorch": {"batch_size": 8, "torch_compile": True, "torch_compile_mode": "reduce-overhead"}},
        {"passthrough_kwargs": {"rope_scaling": {"factor": 2.0}, "flags": [1, None, "x"]}},
    ],
)
def test_a_dump_reads_back_equal_here_and_in_a_spawned_child(fields: dict[str, Any]) -> None:
    config = ExperimentConfig.model_validate({"model": "gpt2", **fields})

    assert ExperimentConfig.model_validate(config.model_dump()) == config
    assert ExperimentConfig.model_validate(config.model_dump(mode="json")) == config
    assert _reads_back(config)


def test_a_config_survives_pickling_into_a_spawned_process() -> None:
    config = ExperimentConfig.model_validate({"model": "gpt2", "dataset": {"n": 3}, "decoder": {"preset": "factual"}})

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_reads_back, (config,))


_PARAMS = [
    param
    for param in get_params_from_model(ExperimentConfig).values()
    if param["test_values"] and param["path"].split(".")[0] not in ("dataset", "backend", "lora")
]


@st.composite
def _documents(draw: st.DrawFn) -> dict[str, Any]:
    """An experiment on a random backend with a few of its parameters set to values they take alone."""
    backend = draw(st.sampled_from(["pytorch", "vllm", "tensorrt"]))
    params = [param for param in _PARAMS if backend in param["backend_support"]]
    document: dict[str, Any] = {"model": "gpt2", "backend": backend}
    for param in draw(st.lists(st.sampled_from(params), max_size=3, unique_by=lambda param: param["path"])):
        set_dotted(document, param["path"], draw(st.sampled_from(param["test_values"])))
    return document


@settings(deadline=None, max_examples=60)
@given(document=_documents())
def test_any_valid_config_survives_a_round_trip(document: dict[str, Any]) -> None:
    try:
        config = ExperimentConfig.model_validate(document)
    except ValidationError:
        assume(False)
    assert ExperimentConfig.model_validate(config.model_dump()) == config
    assert ExperimentConfig.model_validate(config.model_dump(mode="json", exclude_unset=True)) == config
    assert _reads_back(config)


@pytest.mark.parametrize("section", ["decoder", "warmup", "baseline", "energy", "measurement"])
def test_an_empty_section_means_its_defaults(section: str) -> None:
    plain = ExperimentConfig.model_validate({"model": "gpt2"})
    assert ExperimentConfig.model_validate({"model": "gpt2", section: None}) == plain


@pytest.mark.parametrize(
    ("section", "value", "advice"),
    [
        ("warmup", False, "{enabled: false}"),
        ("baseline", False, "{enabled: false}"),
        ("energy", False, "{backend: null}"),
        ("energy", "nvml", "{backend: nvml}"),
        ("decoder", "deterministic", "{preset: deterministic}"),
    ],
)
def test_a_plain_value_in_place_of_a_section_is_told_how_to_be_written(section: str, value: Any, advice: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({"model": "gpt2", section: value})
    (told,) = describe_validation_error(caught.value)
    assert told.startswith(f"{section}: must be a mapping of its fields, got {value!r}")
    assert told.endswith(f". Write {advice}")


@pytest.mark.parametrize(("section", "value"), [("warmup", True), ("warmup", 5), ("lora", "x"), ("pytorch", False)])
def test_where_nothing_is_meant_for_sure_nothing_is_advised(section: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({"model": "gpt2", section: value})
    (told,) = describe_validation_error(caught.value)
    assert "Write" not in told


@pytest.mark.parametrize("path", sorted(OTHER_NAMES.items()), ids=str)
def test_what_other_tools_call_a_field_is_no_field_of_ours_and_suggests_one(path: tuple[str, str]) -> None:
    theirs, ours = path
    (unknown,) = unknown_keys({theirs: 1}, ExperimentConfig)
    assert unknown.suggestions[0] == ours
    assert ours in field_paths(ExperimentConfig)


@pytest.mark.parametrize("meant", ["cuda", "fp16", "bf16", "fp32", "pytorch", "tensorrt", "flash_attention_2"])
def test_what_other_tools_call_a_value_suggests_ours(meant: str) -> None:
    params = get_params_from_model(ExperimentConfig).values()
    (path,) = [p["path"] for p in params if p["path"] in _NAMED_VALUES and meant in (p["options"] or ())]
    for theirs in [name for name, ours in OTHER_VALUES.items() if ours == meant]:
        fields: dict[str, Any] = {"model": "gpt2"}
        set_dotted(fields, path, theirs)
        with pytest.raises(ValidationError) as caught:
            ExperimentConfig.model_validate(fields)
        (told,) = describe_validation_error(caught.value)
        assert told.endswith(f"Did you mean {meant!r}?")


@pytest.mark.parametrize("field", ["model", "revision", "output_dir", "dataset"])
@pytest.mark.parametrize(("text", "said"), [("a\x1b[31mb", "control character"), ("a" * 5000, "at most 4096")])
def test_a_name_with_an_escape_sequence_or_without_end_is_refused_and_not_printed(
    field: str, text: str, said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({"model": "m", field: text})
    (told,) = describe_validation_error(caught.value)
    assert said in told
    assert "\x1b" not in told
    assert len(told) < 200


def test_a_long_name_is_cut_in_titles() -> None:
    title = experiment_title(ExperimentConfig(model="a" * 4000))
    assert title.endswith("… / pytorch / bf16")
    assert len(title) < 120


@pytest.mark.parametrize("path", ["token", "hub.api_key", "nested.password"])
def test_a_secret_is_refused_and_not_printed(path: str) -> None:
    kwargs: dict[str, Any] = {}
    set_dotted(kwargs, path, "hf_abc")
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({"model": "m", "passthrough_kwargs": kwargs})
    (told,) = describe_validation_error(caught.value)
    assert told.startswith(f"passthrough_kwargs.{path}: a secret must not stand in a config")
    assert "hf_abc" not in told


def test_a_switch_that_is_named_like_a_secret_is_none() -> None:
    assert ExperimentConfig(model="m", passthrough_kwargs={"token": True}).passthrough_kwargs == {"token": True}
