"""What all configuration models share: strictness, errors that name a field, and rules within a section as data.

A section lists its rules; validation applies them and introspection tells them.
"""

from __future__ import annotations

import copy
import os
import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from llenergymeasure.config.ssot import BATCH_SIZE_FIELD
from llenergymeasure.exceptions import ConfigError

COMBINATION_ERROR: Final = "config_combination"
"""Pydantic error type of values that are fine one by one but not together."""

NOT_A_SECTION: Final = "not_a_section"
"""Pydantic error type of a plain value where a section belongs."""

MAX_TEXT: Final = 4096
"""Characters of a name or a path: no longer one can be opened."""


def _without_control_characters(text: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("holds a control character")
    return text


NonBlankStr = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT),
    AfterValidator(_without_control_characters),
]


PathStr = Annotated[
    NonBlankStr, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)
]
"""Text that may name a place on disk; Python code may give a `pathlib.Path`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why values do not go together: the field to change, and what is wrong with it and how to mend it."""

    path: str
    """Dotted, relative to the model that found the problem."""
    message: str


class ConfigModel(BaseModel):
    """A frozen model that knows no unknown keys and guesses nothing.

    Strict: `"8"`, `8.0` and `true` are not the integer 8, and NaN and infinity are not numbers one can run with. An
    integer is accepted where a float is meant.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
    switched_off: ClassVar[str] = ""
    """How a section is written that is switched off, where it can be: `enabled: false`."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        """An empty section (`warmup:`) means its defaults; a plain value in its place is told how to be written."""
        if isinstance(data, Mapping):
            empty = {name for name, value in data.items() if value is None} & _section_names(cls)
            return {name: value for name, value in data.items() if name not in empty} if empty else data
        if isinstance(data, cls):
            return data
        raise PydanticCustomError(NOT_A_SECTION, "must be a mapping of its fields{hint}", {"hint": cls._meant(data)})

    @classmethod
    def _meant(cls, value: Any) -> str:
        if value is False and cls.switched_off:
            return f". Write {{{cls.switched_off}}}"
        fields = (name for name, field in cls.model_fields.items() if value in _choices(field.annotation))
        field = next(fields, None) if isinstance(value, str) else None
        return f". Write {{{field}: {value}}}" if field is not None else ""


@cache
def _section_names(model: type[BaseModel]) -> frozenset[str]:
    """The fields that are sections which are always there."""
    kinds = {name: field.annotation for name, field in model.model_fields.items()}
    return frozenset(name for name, kind in kinds.items() if kind is not None and nested_model(kind) is kind)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also inside a union, and those that a type's JSON schema lists."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if isinstance(annotation, WithJsonSchema):
        return tuple((annotation.json_schema or {}).get("enum", ()))
    return tuple(choice for arg in get_args(annotation) for choice in _choices(arg))


class CheckedConfig(ConfigModel):
    """A model whose values have to go together; all its problems come as one error of type `COMBINATION_ERROR`."""

    @abstractmethod
    def problems(self) -> Iterable[Problem]:
        """Every reason why the values do not go together."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = tuple(self.problems())
        if found:
            raise PydanticCustomError(
                COMBINATION_ERROR,
                "{text}",
                {
                    "text": "\n".join(problem.message for problem in found),
                    "problems": [asdict(problem) for problem in found],
                },
            )
        return self


def try_values(*values: float) -> dict[str, JsonValue]:
    """Field metadata: values that introspection offers for tests instead of those it would derive."""
    return {"test_values": list(values)}


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Model | None`, or `None` if it holds plain values."""
    if get_origin(annotation) in (list, dict):  # asked first: Python 3.10 takes `list[str]` for a class
        return None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := nested_model(arg)) is not None), None)


@cache
def field_paths(model: type[BaseModel]) -> tuple[str, ...]:
    """Dotted paths of every field of `model` and of the models in it, parents before children."""
    paths: list[str] = []
    for name, field in model.model_fields.items():
        inner = nested_model(field.annotation)
        paths += [name, *(f"{name}.{path}" for path in (field_paths(inner) if inner is not None else ()))]
    return tuple(paths)


def by_dotted_path(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings, with its dotted path."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from by_dotted_path(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def deep_merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`: mappings are merged key by key, anything else replaces. Neither argument is changed."""
    merged = copy.deepcopy(dict(base))
    for key, value in overlay.items():
        existing = merged.get(key)
        if isinstance(existing, Mapping) and isinstance(value, Mapping):
            merged[key] = deep_merge(existing, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def portable_data(config: BaseModel) -> dict[str, Any]:
    """All values of a model in what JSON has, so that it reads back as the same: left out is only an unset `None`.

    A `None` that is no default says something (`energy.backend: null`), and so does one inside a free mapping.
    """
    return _portable(config, config.model_dump(mode="json"))


def _portable(model: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            data[name] = _portable(value, dumped[name])
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            data[name] = [_portable(item, of_item) for item, of_item in zip(value, dumped[name], strict=True)]
        elif value is not None or field.default is not None:
            data[name] = dumped[name]
    return data


def unwrap_dataset(data: Mapping[str, Any]) -> dict[str, Any]:
    """`dataset: {synthetic: {…}}` in its flat form, so that two sources of it can be merged."""
    dataset = data.get("dataset")
    if isinstance(dataset, Mapping) and isinstance(dataset.get("synthetic"), Mapping):
        beside = {key: value for key, value in dataset.items() if key != "synthetic"}
        return {**data, "dataset": deep_merge(dataset["synthetic"], beside)}
    return dict(data)


def set_dotted(data: dict[str, Any], name: str, value: Any) -> None:
    """Put `value` at a dotted path, making the mappings on the way.

    Raises:
        ConfigError: Something else than a mapping is in the way.
    """
    *parents, leaf = name.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {name!r} contradicts the override of {parent!r}. Give one of the two.")
    if leaf in data:
        raise ConfigError(f"override {name!r} is given twice, once inside another one. Give it once.")
    data[leaf] = copy.deepcopy(value)


@dataclass(frozen=True, slots=True)
class Condition:
    """A field in a certain state, e.g. `use_cache` being off."""

    field: str
    holds: Callable[[Any], bool]


def when(field: str, *values: Any) -> Condition:
    """The field has one of these values."""
    return Condition(field, lambda value: value in values)


def unless(field: str, *values: Any) -> Condition:
    """The field has none of these values."""
    return Condition(field, lambda value: value not in values)


def given(field: str) -> Condition:
    """The field is set."""
    return unless(field, None)


def several(field: str) -> Condition:
    """The number is set to more than one."""
    return Condition(field, lambda value: value is not None and value > 1)


@dataclass(frozen=True, slots=True)
class Needs:
    """`field` does nothing unless the condition holds."""

    field: str
    condition: Condition

    def problems(self, section: str, config: ConfigModel) -> Iterator[Problem]:
        """The problem this rule has with `config`, if it has one."""
        value, other = getattr(config, self.field), self.condition.field
        state = getattr(config, other)
        if value is not None and not self.condition.holds(state):
            yield Problem(
                self.field,
                f"{section}.{self.field}: {value!r} has no effect with {section}.{other}={state!r}. "
                f"Change {other} or remove {self.field}.",
            )

    def describe(self, section: str) -> str:
        """The rule in words."""
        return f"{section}.{self.field} needs {section}.{self.condition.field}"


@dataclass(frozen=True, slots=True)
class Excludes:
    """Two conditions that must not hold at once."""

    left: Condition
    right: Condition
    why: str

    def problems(self, section: str, config: ConfigModel) -> Iterator[Problem]:
        """The problem this rule has with `config`, if it has one."""
        left, right = getattr(config, self.left.field), getattr(config, self.right.field)
        if self.left.holds(left) and self.right.holds(right):
            yield Problem(
                self.right.field,
                f"{section}.{self.right.field}: {right!r} cannot be combined with "
                f"{section}.{self.left.field}={left!r}: {self.why}. Remove one of the two.",
            )

    def describe(self, section: str) -> str:
        """The rule in words."""
        return f"{section}.{self.left.field} may exclude {section}.{self.right.field}: {self.why}"


Rule = Needs | Excludes


class RuledConfig(CheckedConfig):
    """A section whose fields are bound by rules; `section` is its dotted name."""

    section: ClassVar[str]
    rules: ClassVar[tuple[Rule, ...]] = ()

    def problems(self) -> Iterator[Problem]:
        """What the rules have against the values."""
        for rule in self.rules:
            yield from rule.problems(self.section, self)


class BackendConfig(RuledConfig):
    """An engine's section: fields of its own, and answers that all sections give in the same words.

    What follows from the settings alone is told here, without the engine: previews, runners and estimates need it on
    machines that have none.
    """

    default_batch: ClassVar[int]
    """Sequences in flight where nobody said: the engine's own default."""
    fills_memory: ClassVar[bool] = True
    """Whether its key-value cache takes the memory that is left, rather than what the batch needs."""
    null_means: ClassVar[Mapping[str, Any]] = {}
    """What the engine does where a field is `None`, as far as that is the same for every model and machine."""

    @property
    def batch(self) -> int:
        """Most prompts in flight at once."""
        return self.given_batch or self.default_batch

    @property
    def given_batch(self) -> int | None:
        """`batch`, where it is set."""
        field = BATCH_SIZE_FIELD.get(self.section)
        return None if field is None else getattr(self, field.partition(".")[2])

    @property
    def rows_per_prompt(self) -> int:
        """Sequences that the engine keeps for each prompt, such as beams."""
        return 1

    @property
    def keeps_cache(self) -> bool:
        """Whether keys and values are kept between steps."""
        return True

    @property
    def processes(self) -> int:
        """Copies of the model, each in a process and on a GPU of its own."""
        return 1

    @property
    def spans_machines(self) -> bool:
        """Whether the engine may spread one model over several machines."""
        return False

    @property
    def device_choice(self) -> Literal["auto", "cuda", "cpu"] | None:
        """Where it was told to run; `None` requires a GPU."""
        return None

    @property
    def loading_bits(self) -> int | None:
        """Bits of a weight that is quantised while it is loaded; `None`: weights stay as they are."""
        return None

    def resolved(self, n: int) -> dict[str, Any]:
        """What the settings come to for `n` prompts, the same for sections that make the engine do the same."""
        return {
            name: self.null_means.get(name) if value is None else value
            for name, value in self.model_dump(mode="json").items()
        }

    def gpu_count(self, available: int) -> int:
        """GPUs that the settings ask for, of so many that are `available` to those that take them all."""
        return self.processes
