"""The result's contract: its fields, its defaults, its identity."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.domain import base, energy, environment, experiment, latency, metrics, study
from llenergymeasure.domain.experiment import (
    AggregatedResult,
    ExperimentResult,
    RawProcessResult,
    compute_measurement_config_hash,
)
from result_samples import NOON, REQUIRED, make_record, make_result

DEFAULTS: dict[str, Any] = {
    "schema_version": "2.0",
    "backend": "pytorch",
    "backend_version": None,
    "steady_state_window": None,
    "input_tokens": None,
    "output_tokens": None,
    "baseline_power_w": None,
    "energy_adjusted_j": None,
    "energy_per_device_j": None,
    "energy_breakdown": None,
    "multi_gpu": None,
    "environment_snapshot": None,
    "measurement_warnings": [],
    "warmup_excluded_samples": None,
    "timeseries": None,
    "effective_config": {},
    "process_results": [],
    "aggregation": None,
    "thermal_throttle": None,
    "warmup_result": None,
    "latency_stats": None,
    "extended_metrics": None,
    "peak_memory_mb": None,
}
GOLDEN_HASHES: dict[str, dict[str, Any]] = {
    "18d75e2e6a1bb45e": {"model": "gpt2"},
    "db0d513b7101e2a5": {
        "model": "Qwen/Qwen2.5-0.5B",
        "precision": "fp16",
        "n": 50,
        "pytorch": {"batch_size": 8, "attn_implementation": "sdpa"},
        "decoder": {"temperature": 0.7, "top_p": 0.9},
    },
    "aeab434ae073fef4": {
        "model": "meta-llama/Llama-3.1-8B",
        "backend": "vllm",
        "vllm": {"max_num_seqs": 64, "enable_prefix_caching": False},
    },
    "af76210f8e9ae989": {
        "model": "builtin/tiny-llama",
        "n": 10,
        "dataset": {"n": 10, "input_len": 64, "output_len": 16},
        "warmup": {"thermal_floor_seconds": 0},
        "baseline": {"enabled": False},
    },
    "88676288cd035c5f": {
        "model": "gpt2",
        "lora": {"adapter_id": "someone/adapter"},
        "passthrough_kwargs": {"ключ": "é", "b": [1, 2.5]},
    },
}
"""These change only when a default really changes what is measured; old results could not be found again otherwise."""


def all_records() -> list[type[BaseModel]]:
    modules = (base, energy, environment, experiment, latency, metrics, study)
    found = {item for module in modules for item in vars(module).values() if isinstance(item, type)}
    return sorted((item for item in found if issubclass(item, base.Record)), key=lambda item: item.__name__)


def test_a_result_is_built_from_the_required_fields_alone() -> None:
    required = {name for name, field in ExperimentResult.model_fields.items() if field.is_required()}
    assert required == set(REQUIRED)
    result = make_result()
    assert {name: getattr(result, name) for name in DEFAULTS} == DEFAULTS
    assert "±5 %" in result.reproducibility_notes
    assert "not the same joules" in result.reproducibility_notes


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_every_required_field_is_missed(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ExperimentResult(**{key: value for key, value in REQUIRED.items() if key != name})


@pytest.mark.parametrize("name", ["total_energy_j", "avg_energy_per_token_j", "total_flops"])
def test_what_was_not_measured_is_none_not_zero(name: str) -> None:
    assert getattr(make_result(**{name: None}), name) is None


def test_a_result_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_result().total_energy_j = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_energy_j", float("nan")),
        ("avg_tokens_per_second", float("inf")),
        ("measurement_methodology", "roughly"),
        ("schema_version", "1.0"),
        ("total_tokens", -1),
        ("surprise", 1),
    ],
)
def test_a_result_refuses_what_cannot_be(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        make_result(**{field: value})


def test_tokens_per_joule_tells_zero_from_unknown() -> None:
    measured = make_result(total_energy_j=100.0, total_tokens=300, output_tokens=200)
    assert measured.tokens_per_joule == 3.0
    assert measured.output_tokens_per_joule == 2.0
    assert make_result(total_energy_j=0.0, output_tokens=200).tokens_per_joule == 0.0
    assert make_result(total_energy_j=0.0, output_tokens=200).output_tokens_per_joule == 0.0
    assert make_result(total_energy_j=None).tokens_per_joule is None
    assert make_result(output_tokens=None).output_tokens_per_joule is None


def test_duration_is_that_of_the_whole_experiment() -> None:
    assert make_result(start_time=NOON, end_time=NOON + timedelta(seconds=164)).duration_sec == 164.0


def test_aggregated_result_is_the_same_class() -> None:
    assert AggregatedResult is ExperimentResult


def test_a_raw_record_has_the_internal_schema_and_only_the_named_fields_are_required() -> None:
    required = {name for name, field in RawProcessResult.model_fields.items() if field.is_required()}
    assert required == {
        "experiment_id",
        "process_index",
        "gpu_id",
        "config_name",
        "model_name",
        "timestamps",
        "inference_metrics",
        "energy_metrics",
        "compute_metrics",
    }
    assert make_record().schema_version == "2.0.0"


@pytest.mark.parametrize("record", all_records(), ids=lambda record: record.__name__)
def test_every_record_is_frozen_closed_and_described(record: type[BaseModel]) -> None:
    assert record.model_config.get("frozen")
    assert record.model_config.get("extra") == "forbid"
    undescribed = [name for name, field in record.model_fields.items() if not field.description]
    assert undescribed == []


@pytest.mark.parametrize("record", all_records(), ids=lambda record: record.__name__)
def test_every_field_with_a_unit_in_its_name_says_so_in_words(record: type[BaseModel]) -> None:
    words = {
        "_j": ("joule", "operations per joule"),
        "_w": ("watts",),
        "_ms": ("ms",),
        "_mb": ("MB",),
        "_mhz": ("MHz",),
        "_pct": ("per cent",),
        "_sec": ("second",),
        "_c": ("degrees Celsius",),
    }
    silent = [
        name
        for name, field in record.model_fields.items()
        for suffix, units in words.items()
        if name.endswith(suffix) and not any(unit.lower() in str(field.description).lower() for unit in units)
    ]
    assert silent == []


def test_effective_config_holds_only_what_json_can() -> None:
    config = make_result(
        effective_config={"dtype": ExperimentResult, "top": (1, float("inf")), 3: None}
    ).effective_config
    assert config == {"dtype": str(ExperimentResult), "top": [1, "inf"], "3": None}


def test_the_hash_is_sixteen_hex_digits_and_depends_on_every_setting_but_where_it_is_saved() -> None:
    plain = compute_measurement_config_hash(ExperimentConfig(model="gpt2"))
    assert len(plain) == 16
    assert set(plain) <= set("0123456789abcdef")
    assert compute_measurement_config_hash(ExperimentConfig(model="gpt2", output_dir="/elsewhere")) == plain
    for change in ({"n": 50}, {"precision": "fp16"}, {"pytorch": {"batch_size": 8}}, {"random_seed": 1}):
        assert compute_measurement_config_hash(ExperimentConfig(model="gpt2", **change)) != plain


@pytest.mark.parametrize("expected", GOLDEN_HASHES)
def test_the_hash_of_a_configuration_never_changes(expected: str) -> None:
    assert compute_measurement_config_hash(ExperimentConfig(**GOLDEN_HASHES[expected])) == expected


def test_a_new_optional_field_keeps_old_hashes() -> None:
    class Then(BaseModel):
        model: str = "gpt2"
        output_dir: str | None = None

    class Now(Then):
        new_setting: int | None = None

    assert compute_measurement_config_hash(Then()) == compute_measurement_config_hash(Now())
    assert compute_measurement_config_hash(Now(new_setting=1)) != compute_measurement_config_hash(Now())


@given(st.dictionaries(st.text(), st.integers() | st.text(), min_size=1))
def test_the_order_of_passthrough_settings_does_not_matter(settings: dict[str, Any]) -> None:
    class Config(BaseModel):
        passthrough: dict[str, Any]

    turned = dict(reversed(settings.items()))
    assert compute_measurement_config_hash(Config(passthrough=settings)) == compute_measurement_config_hash(
        Config(passthrough=turned)
    )
