"""Every parameter a user can set, with its type, limits, options and values to test it with.

All of it is derived from the models' JSON schema, the support tables and the rules; tests and the parameter reference
are generated from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final, TypedDict

from pydantic import BaseModel

from llenergymeasure.config.backend_configs import SECTIONS
from llenergymeasure.config.base import Excludes, Needs, Rule, nested_model
from llenergymeasure.config.models import CHECKS, ExperimentConfig
from llenergymeasure.config.ssot import (
    BACKENDS,
    BATCH_SIZE_FIELD,
    DECODER_PARAM_SUPPORT,
    DECODING_SUPPORT,
    LORA_SUPPORT,
    PRECISION_SUPPORT,
)

_SHARED: Final = ("precision", "n", "max_input_tokens", "max_output_tokens", "random_seed", "decoder")
_CONSTRAINTS: Final[Mapping[str, str]] = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "minLength": "min_length",
}
_TYPE_NAMES: Final[Mapping[str, str]] = {
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "string": "str",
    "object": "dict",
    "array": "list",
    "null": "None",
}


class ParamMetadata(TypedDict):
    """What is known about one parameter."""

    path: str
    name: str
    """The last part of its dotted path."""
    type_str: str
    """Python type, e.g. `int | None`."""
    default: Any
    """`None` also where there is none."""
    description: str
    options: list[Any] | None
    """The values it takes, where they are few."""
    test_values: list[Any]
    """Valid values to try it with, at most a handful."""
    constraints: dict[str, float]
    """Limits by name: `ge`, `gt`, `le`, `lt`, `min_length`."""
    optional: bool
    """Whether it may be `None`."""
    backend_support: list[str]
    """Backends it acts on."""


def get_shared_params() -> dict[str, ParamMetadata]:
    """Parameters that mean the same on every backend, by path."""
    return _below(_SHARED)


def get_backend_params(backend: str) -> dict[str, ParamMetadata]:
    """Parameters of one backend's section, by path.

    Raises:
        ValueError: There is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"Unknown backend {backend!r}. Use one of: {', '.join(BACKENDS)}")
    return _below([backend])


def get_all_params() -> dict[str, dict[str, ParamMetadata]]:
    """Shared parameters and each backend's, under `shared` and the backends' names."""
    return {"shared": get_shared_params(), **{backend: get_backend_params(backend) for backend in BACKENDS}}


def get_params_from_model(model: type[BaseModel], prefix: str = "") -> dict[str, ParamMetadata]:
    """Parameters of a model and of the models in it, by path; `prefix` is the path of the model itself."""
    return {param["path"]: param for param in _walk(model, prefix)}


def get_experiment_config_schema() -> dict[str, Any]:
    """JSON schema of an experiment."""
    return ExperimentConfig.model_json_schema()


def get_param_test_values(path: str) -> list[Any]:
    """Valid values to try a parameter with.

    Raises:
        ValueError: There is no such parameter.
    """
    return _param(path)["test_values"]


def get_param_options(path: str) -> list[Any] | None:
    """The values a parameter takes, or `None` where they are not a short list.

    Raises:
        ValueError: There is no such parameter.
    """
    return _param(path)["options"]


def list_all_param_paths(backend: str | None = None) -> list[str]:
    """Paths of the shared parameters and of one backend's, or of all.

    Raises:
        ValueError: There is no such backend.
    """
    sections = BACKENDS if backend is None else [backend]
    return [*get_shared_params(), *(path for section in sections for path in get_backend_params(section))]


def get_backend_specific_params() -> dict[str, list[str]]:
    """Paths of each backend's own parameters."""
    return {backend: list(get_backend_params(backend)) for backend in BACKENDS}


def get_mutual_exclusions() -> dict[str, list[str]]:
    """For each parameter, those that some of its values exclude."""
    excluded: dict[str, set[str]] = {}
    for section, rule in _section_rules():
        if isinstance(rule, Excludes):
            left, right = f"{section}.{rule.left.field}", f"{section}.{rule.right.field}"
            excluded.setdefault(left, set()).add(right)
            excluded.setdefault(right, set()).add(left)
    return {path: sorted(others) for path, others in sorted(excluded.items())}


def get_param_skip_conditions() -> dict[str, str]:
    """For each parameter that another one has to make room for, when it cannot be tried alone."""
    return {
        f"{section}.{rule.field}": rule.describe(section)
        for section, rule in _section_rules()
        if isinstance(rule, Needs)
    }


def get_validation_rules() -> list[dict[str, str]]:
    """Limits of single parameters, rules within sections, and checks across the experiment: `path` and `rule`."""
    limits = {
        path: ", ".join(f"{name} {limit:.15g}" for name, limit in param["constraints"].items())
        for path, param in get_params_from_model(ExperimentConfig).items()
    }
    across = [(inspect.getdoc(check) or check.__name__).splitlines()[0] for check in CHECKS]
    return [
        *({"path": path, "rule": rule} for path, rule in limits.items() if rule),
        *({"path": section, "rule": rule.describe(section)} for section, rule in _section_rules()),
        *({"path": "experiment", "rule": rule} for rule in across),
    ]


def get_backend_capabilities() -> dict[str, dict[str, Any]]:
    """What each backend supports."""
    return {
        backend: {
            "precision": PRECISION_SUPPORT[backend],
            "decoding": DECODING_SUPPORT[backend],
            "decoder_params": DECODER_PARAM_SUPPORT[backend],
            "lora": backend in LORA_SUPPORT,
            "batch_size_field": BATCH_SIZE_FIELD[backend],
            "quantization": _quantization_options(backend),
        }
        for backend in BACKENDS
    }


def get_capability_matrix_markdown() -> str:
    """What each backend supports, as a Markdown table."""
    capabilities = get_backend_capabilities().values()

    def listed(key: str) -> list[str]:
        return [", ".join(backend[key]) or "none" for backend in capabilities]

    rows = {
        "Feature": BACKENDS,
        "---": ["---" for _ in BACKENDS],
        "Precision": listed("precision"),
        "Decoding": listed("decoding"),
        "Decoder parameters": listed("decoder_params"),
        "Quantisation": listed("quantization"),
        "LoRA adapter": ["yes" if backend["lora"] else "merge first" for backend in capabilities],
        "`--batch-size` means": [f"`{backend['batch_size_field']}`" for backend in capabilities],
    }
    return "\n".join(f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items())


def _below(sections: Iterable[str]) -> dict[str, ParamMetadata]:
    params = get_params_from_model(ExperimentConfig)
    return {path: param for path, param in params.items() if path.split(".")[0] in sections}


def _param(path: str) -> ParamMetadata:
    params = get_params_from_model(ExperimentConfig)
    if path not in params:
        raise ValueError(f"Unknown parameter {path!r}. Known parameters: {', '.join(params)}")
    return params[path]


def _walk(model: type[BaseModel], prefix: str) -> Iterator[ParamMetadata]:
    properties = _properties(model)
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        inner = nested_model(field.annotation)
        variants = _variants(properties[name])
        if inner is None or any(variant.get("type") == "string" for variant in variants):
            yield _metadata(path, properties[name], variants)
        if inner is not None:
            yield from _walk(inner, path)


@cache
def _properties(model: type[BaseModel]) -> dict[str, Any]:
    return dict(model.model_json_schema()["properties"])


def _variants(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives a property allows, `None` included."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return [variant for option in schema[key] for variant in _variants(option)]
    return [schema]


def _metadata(path: str, schema: Mapping[str, Any], variants: list[Mapping[str, Any]]) -> ParamMetadata:
    values = [variant for variant in variants if variant.get("type") != "null"]
    options = _options(values)
    constraints = {
        short: variant[long] for variant in values for long, short in _CONSTRAINTS.items() if long in variant
    }
    default = schema.get("default")
    return ParamMetadata(
        path=path,
        name=path.rpartition(".")[2],
        type_str=" | ".join(dict.fromkeys(_type_name(variant) for variant in variants)),
        default=default,
        description=schema.get("description", ""),
        options=options,
        test_values=list(schema.get("test_values", ())) or _test_values(values[0], options, constraints, default),
        constraints=constraints,
        optional=len(values) < len(variants),
        backend_support=_backend_support(path),
    )


def _options(values: list[Mapping[str, Any]]) -> list[Any] | None:
    for variant in values:
        if "enum" in variant:
            return list(variant["enum"])
        if "const" in variant:
            return [variant["const"]]
        if variant.get("type") == "boolean":
            return [False, True]
    return None


def _type_name(variant: Mapping[str, Any]) -> str:
    if "$ref" in variant:
        return str(variant["$ref"]).rpartition("/")[2]
    if "enum" in variant:
        return f"Literal[{', '.join(repr(option) for option in variant['enum'])}]"
    return _TYPE_NAMES[variant["type"]]


def _test_values(
    schema: Mapping[str, Any], options: list[Any] | None, constraints: Mapping[str, float], default: Any
) -> list[Any]:
    """Valid values from type and limits: the limits themselves, the default and a step away from it."""
    if options is not None:
        return options
    kind = schema.get("type")
    if kind not in ("integer", "number"):
        return [default] if kind == "string" and default is not None else []
    low, high = constraints.get("ge"), constraints.get("le")
    if low is None and "gt" in constraints:
        low = constraints["gt"] + 1 if high is None else (constraints["gt"] + high) / 2
    start = low if low is not None else 0
    candidates = [start, default, high if high is not None else max(2 * start, 4 * (default or 2))]
    number = int if kind == "integer" else float
    return sorted({number(value) for value in candidates if value is not None})


def _backend_support(path: str) -> list[str]:
    top, _, rest = path.partition(".")
    if top in BACKENDS:
        return [top]
    if top == "decoder" and any(rest in params for params in DECODER_PARAM_SUPPORT.values()):
        return [backend for backend in BACKENDS if rest in DECODER_PARAM_SUPPORT[backend]]
    if top == "lora":
        return list(LORA_SUPPORT)
    return list(BACKENDS)


def _quantization_options(backend: str) -> list[str]:
    """Values of the section's `quantization`, or its switches that load quantised weights."""
    params = get_backend_params(backend)
    named = params.get(f"{backend}.quantization")
    if named is not None:
        return list(named["options"] or [])
    return [param["name"] for param in params.values() if param["name"].startswith("load_in_")]


def _section_rules() -> Iterator[tuple[str, Rule]]:
    """Every rule of every backend section, with the section's dotted name; sections within sections come last."""
    models: list[Any] = list(SECTIONS.values())
    while models:
        for model in models:
            yield from ((model.section, rule) for rule in model.rules)
        fields = [field for model in models for field in model.model_fields.values()]
        models = [inner for field in fields if (inner := nested_model(field.annotation)) is not None]
