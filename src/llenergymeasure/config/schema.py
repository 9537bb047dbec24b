"""The shape of the configuration models, walked: which fields there are, and what an unknown one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.sections import SyntheticDatasetConfig

Path = tuple[str | int, ...]

_CLOSE: Final = 0.6
_CLOSE_ELSEWHERE: Final = 0.75
_MAX_SUGGESTIONS: Final = 3


@dataclass(frozen=True, slots=True)
class UnknownField:
    """A key that no model has.

    Args:
        path: Where it is in the document.
        suggestions: Dotted paths it may have been meant to be, likeliest first.
    """

    path: Path
    suggestions: tuple[str, ...]

    @property
    def message(self) -> str:
        """What is wrong and what may help, without the place."""
        hint = ""
        if dotted(self.path) in self.suggestions:
            section, _, leaf = str(self.path[-1]).partition(".")
            hint = f" Write it nested: `{section}: {{{leaf}: …}}`."
        elif self.suggestions:
            hint = f" Did you mean {' or '.join(repr(path) for path in self.suggestions)}?"
        return f"unknown field {dotted(self.path)!r}.{hint}"


def dotted(path: Iterable[str | int]) -> str:
    """`("experiments", 2, "decoder", "top_k")` as `experiments[2].decoder.top_k`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Model | None`, or `None` if it holds plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        return nested_model(get_args(annotation)[0])
    if get_origin(annotation) in (list, dict):
        return None
    return next((model for arg in get_args(annotation) if (model := nested_model(arg)) is not None), None)


def walk_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of `model` and of the models in it, with its dotted path, parents before children."""
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        yield path, field
        inner = nested_model(field.annotation)
        if inner is not None:
            yield from walk_fields(inner, path)


def unknown_fields(
    data: Mapping[str, Any],
    model: type[BaseModel] = ExperimentConfig,
    at: Path = (),
    root: type[BaseModel] = ExperimentConfig,
) -> list[UnknownField]:
    """Every key in `data`, at any depth, that `model` does not have.

    Args:
        data: What was written.
        model: The model it is meant for.
        at: Where `data` is in the document.
        root: The model of the whole document, searched for what an unknown key was meant to be.
    """
    found: list[UnknownField] = []
    for key, value in data.items():
        path = (*at, key)
        field = model.model_fields.get(key)
        if field is None:
            found.append(UnknownField(path, _suggest(str(key), model, at, root)))
            continue
        inner = nested_model(field.annotation)
        if inner is None or not isinstance(value, Mapping):
            continue
        if inner is SyntheticDatasetConfig and "synthetic" in value:
            found += _unknown_in_wrapped_dataset(value, path)
        else:
            found += unknown_fields(value, inner, path, root)
    return found


def is_open_mapping(annotation: Any) -> bool:
    """Whether a field takes keys of its user's choosing, such as `dict[str, Any] | None`."""
    if get_origin(annotation) is dict:
        return True
    return any(is_open_mapping(arg) for arg in get_args(annotation) if get_origin(annotation) is not list)


def leads_nowhere(path: Sequence[str], model: type[BaseModel] = ExperimentConfig) -> bool:
    """Whether `path` goes on below a field that holds a plain value, such as `precision.x`."""
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None or is_open_mapping(field.annotation):
            return False
        inner = nested_model(field.annotation)
        if inner is None:
            return True
        model = inner
    return False


def _unknown_in_wrapped_dataset(value: Mapping[str, Any], path: Path) -> list[UnknownField]:
    """Of the form `dataset: {synthetic: {…}}`, which has no keys beside `synthetic`."""
    beside = [
        UnknownField(
            (*path, key), (f"{dotted(path)}.synthetic.{key}",) if key in SyntheticDatasetConfig.model_fields else ()
        )
        for key in value
        if key != "synthetic"
    ]
    inner = value["synthetic"]
    nested = unknown_fields(inner, SyntheticDatasetConfig, (*path, "synthetic")) if isinstance(inner, Mapping) else []
    return [*beside, *nested]


def _suggest(key: str, model: type[BaseModel], at: Path, root: type[BaseModel]) -> tuple[str, ...]:
    """Same name elsewhere, else a similar name here, else a similar name elsewhere."""
    wanted = key.replace("-", "_").lower()
    if wanted in model.model_fields:
        return (dotted((*at, wanted)),)
    by_leaf = _paths_by_leaf(root)
    leaf = wanted.rpartition(".")[2]
    elsewhere = [path for path in by_leaf.get(leaf, ()) if path.endswith(wanted)]
    if elsewhere:
        return tuple(elsewhere[:_MAX_SUGGESTIONS])
    here = difflib.get_close_matches(wanted, list(model.model_fields), n=1, cutoff=_CLOSE)
    if here:
        return (dotted((*at, here[0])),)
    similar = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=_CLOSE_ELSEWHERE)
    return tuple(by_leaf[similar[0]][:_MAX_SUGGESTIONS]) if similar else ()


@cache
def _paths_by_leaf(root: type[BaseModel]) -> dict[str, Sequence[str]]:
    """Dotted paths of all fields of a document by their last part."""
    by_leaf: dict[str, list[str]] = {}
    for path, _ in walk_fields(root):
        by_leaf.setdefault(path.rpartition(".")[2], []).append(path)
    return dict(by_leaf)
