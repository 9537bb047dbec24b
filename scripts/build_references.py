"""Fill the generated parts of the documentation from the code they describe.

    python scripts/build_references.py            write them
    python scripts/build_references.py --check    exit 1 where a page is not what it would be

A part stands between `<!-- generated: NAME -->` and `<!-- end generated -->`; NAME is a key of `PARTS`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import settings_reference
from llenergymeasure.config.introspection import (
    ParamMetadata,
    get_backend_params,
    get_capability_matrix_markdown,
    get_params_from_model,
    get_validation_rules,
)
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig
from llenergymeasure.config.ssot import BACKENDS, DECODER_PRESETS
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyManifest, StudyResult
from llenergymeasure.results.export import flat_columns_markdown

DOCS = Path(__file__).resolve().parent.parent / "docs"
MARKED = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)

SCHEMAS = DOCS / "schema"
SCHEMA_MODELS = {
    "result": ExperimentResult,
    "study_summary": StudyResult,
    "manifest": StudyManifest,
    "experiment": ExperimentConfig,
}
"""File → what it holds; of a configuration, one experiment after a study is resolved."""

SECTIONS = ("decoder", "warmup", "baseline", "energy", "measurement", "dataset", "lora")
"""Sections of an experiment that every backend shares."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
    check_only = parser.parse_args(arguments).check
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found['name']]()}\n\n{found[3]}", before)
        if after != before:
            stale.append(page.relative_to(DOCS.parent))
            if not check_only:
                page.write_text(after, encoding="utf-8")
    for name, model in SCHEMA_MODELS.items():
        path, schema = SCHEMAS / f"{name}.schema.json", json_schema(model)
        if not path.exists() or path.read_text(encoding="utf-8") != schema:
            stale.append(path.relative_to(DOCS.parent))
            if not check_only:
                path.write_text(schema, encoding="utf-8")
    for page in stale:
        print(f"{page}: {'is out of date; run scripts/build_references.py' if check_only else 'written'}")
    return int(check_only and bool(stale))


def json_schema(model: type[BaseModel]) -> str:
    """Of the files that hold such a record, as JSON."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def experiment_parameters() -> str:
    """Fields at the top of an experiment file, then each shared section."""
    params = get_params_from_model(ExperimentConfig).values()
    parts = [_table(p for p in params if "." not in p["path"])]
    for section in SECTIONS:
        parts += [f"### `{section}`", _table(p for p in params if p["path"].startswith(f"{section}."))]
    return "\n\n".join(parts)


def backend_parameters() -> str:
    parts = []
    for backend in BACKENDS:
        parts += [f"### `{backend}`", _table(get_backend_params(backend).values())]
    return "\n\n".join(parts)


def execution_parameters() -> str:
    return _table(get_params_from_model(ExecutionConfig, "execution").values())


def user_settings() -> str:
    return _table(get_params_from_model(UserConfig).values())


def decoder_presets() -> str:
    rows = ["| preset | fills |", "|---|---|"]
    for name, values in DECODER_PRESETS.items():
        filled = ", ".join(f"`{field}: {_literal(value)}`" for field, value in values.items())
        rows.append(f"| `{name}` | {filled} |")
    return "\n".join(rows)


def combinations() -> str:
    """Rules about several fields at once; limits of single fields stand in their tables."""
    rules = [rule for rule in get_validation_rules() if rule["path"] == "experiment" or rule["path"] in BACKENDS]
    return "\n".join(f"- {_escape(rule['rule'])}" for rule in rules)


def record_fields(record: type[BaseModel]) -> str:
    """Every field of a record in a file, nested records after the field that holds them."""
    parts = [_record_table(record)]
    for name, model in _nested_records(record):
        parts += [f"### `{name}`", model.__doc__.splitlines()[0] if model.__doc__ else "", _record_table(model)]
    return "\n\n".join(part for part in parts if part)


def _table(params: Iterable[ParamMetadata]) -> str:
    rows = ["| field | values | default | meaning |", "|---|---|---|---|"]
    for param in params:
        default = "" if param["default"] is None and not param["optional"] else f"`{_literal(param['default'])}`"
        rows.append(f"| `{param['path']}` | {_values(param)} | {default} | {_escape(param['description'])} |")
    return "\n".join(rows)


def _values(param: ParamMetadata) -> str:
    """What a field takes: its few values, or type and limits."""
    if param["options"] is not None:
        return ", ".join(f"`{_literal(option)}`" for option in param["options"])
    kind = param["type_str"].replace(" | None", "").replace("|", "or").replace("SyntheticDatasetConfig", "mapping")
    limits = [f"{_SIGNS[name]} {_number(limit)}" for name, limit in param["constraints"].items() if name in _SIGNS]
    return " ".join([kind, ", ".join(limits)]).strip()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _record_table(model: type[BaseModel]) -> str:
    rows = ["| field | type | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        rows.append(f"| `{name}` | `{_escape(_type_name(field.annotation))}` | {_escape(field.description or '')} |")
    return "\n".join(rows)


def _type_name(annotation: Any) -> str:
    """A type as it stands in JSON: `float or null`, `list[str]`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (None, NoneType):
        return "null"
    if annotation is array or origin is array:
        return "numbers in base64"
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(repr(argument) for argument in arguments)
    if arguments:
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in arguments)}]"
    return "any" if annotation is Any else str(annotation.__name__)


def _nested_records(model: type[BaseModel], seen: set[type] | None = None) -> Iterator[tuple[str, type[BaseModel]]]:
    """Records inside `model`, by the name of the field that holds them, each type once."""
    seen = seen if seen is not None else {model}
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            if inner not in seen:
                seen.add(inner)
                yield name, inner
                yield from _nested_records(inner, seen)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _literal(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    """Text for a table's cell; what looks like a tag is shown as it stands, also outside of code."""
    pieces = text.replace("|", "\\|").split("`")
    return "`".join(piece if index % 2 else piece.replace("<", "&lt;") for index, piece in enumerate(pieces))


PARTS: dict[str, Callable[[], str]] = {
    "experiment-parameters": experiment_parameters,
    "backend-parameters": backend_parameters,
    "backend-capabilities": get_capability_matrix_markdown,
    "combinations": combinations,
    "decoder-presets": decoder_presets,
    "execution-parameters": execution_parameters,
    "user-settings": user_settings,
    "result-fields": partial(record_fields, ExperimentResult),
    "study-fields": partial(record_fields, StudyResult),
    "manifest-fields": partial(record_fields, StudyManifest),
    "flat-columns": flat_columns_markdown,
    **{f"settings-{part}": partial(settings_reference.table, part) for part in settings_reference.PARTS},
}

if __name__ == "__main__":
    sys.exit(main())
