"""Any configuration there can be, for properties that hold for all of them."""

from __future__ import annotations

from typing import Any

from hypothesis import reject
from hypothesis import strategies as st
from pydantic import ValidationError

from llenergymeasure.config.introspection import get_params_from_model
from llenergymeasure.config.models import ExperimentConfig

PARAMS = [
    param
    for param in get_params_from_model(ExperimentConfig).values()
    if param["test_values"] and param["path"].split(".")[0] not in ("dataset", "backend", "lora")
]
DATASETS = ["aienergyscore", {"n": 3, "input_len": 7}, {"synthetic": {"n": 4, "output_len": 9}}]
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40).filter(str.strip)
PASSED_THROUGH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """An experiment with a few of its parameters set, some of them to nothing."""
    backend = draw(st.sampled_from(["pytorch", "vllm", "tensorrt"]))
    params = [param for param in PARAMS if backend in param["backend_support"]]
    document: dict[str, Any] = {"model": draw(NAMES), "backend": backend}
    for param in draw(st.lists(st.sampled_from(params), max_size=5, unique_by=lambda param: param["path"])):
        *sections, name = param["path"].split(".")
        target = document
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = draw(st.sampled_from([*param["test_values"], None]))
    for field, values in (
        ("dataset", st.sampled_from(DATASETS)),
        ("passthrough_kwargs", st.none() | st.dictionaries(st.text(min_size=1), PASSED_THROUGH, max_size=3)),
        ("energy", st.sampled_from([{"backend": None}, {"backend": "nvml"}, {}])),
        ("output_dir", st.none() | st.just("~/elsewhere")),
        ("lora", st.none()),
    ):
        if draw(st.booleans()):
            document[field] = draw(values)
    return document


@st.composite
def configs(draw: st.DrawFn) -> ExperimentConfig:
    """An experiment, as a file may describe it."""
    try:
        return ExperimentConfig.model_validate(draw(documents()))
    except ValidationError:
        return reject()
