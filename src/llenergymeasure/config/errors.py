"""What is wrong with a configuration, in plain English: place, field, value, fix.

Unknown keys come first and by themselves: a misspelt key explains many a wrong value.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llenergymeasure.config.base import COMBINATION_ERROR, NOT_A_SECTION, field_paths
from llenergymeasure.config.ssot import OTHER_NAMES, OTHER_VALUES
from llenergymeasure.config.yaml_io import LoadedDocument
from llenergymeasure.exceptions import ConfigError
from llenergymeasure.security import quoted

Path = tuple[str | int, ...]

_STUDY_ONLY_KEYS: Final = ("sweep", "experiments", "execution", "base", "name")
_UNKNOWN: Final = ("extra_forbidden", "invalid_key")
_CLOSE: Final = 0.6
_CLOSE_ELSEWHERE: Final = 0.75
_MAX_SUGGESTIONS: Final = 3
MAX_TOLD: Final = 100
"""Problems that a message lists."""
_UNION_TAGS: Final = {("dataset", "name"), ("dataset", "synthetic")}
"""Parts Pydantic puts into a location to name a union's branch; nobody writes them."""


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """A key that no model has: where it is in the document, and what it may have been meant to be, likeliest first."""

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


def unknown_keys(data: Mapping[str, Any], model: type[BaseModel], at: Path = ()) -> list[UnknownKey]:
    """Every key in `data`, at any depth, that `model` does not have, in the order in which they stand there.

    `data` may lack fields and hold wrong values; `at` is where it is in its document.
    """
    found: list[UnknownKey] = []
    checked: Mapping[str, Any] = data
    wrapper: Path = ()
    dataset = data.get("dataset")
    if "dataset" in model.model_fields and isinstance(dataset, Mapping) and "synthetic" in dataset:
        # `dataset: {synthetic: {…}}` is read as if its keys stood directly below dataset; nothing may stand beside it
        wrapper = ("synthetic",)
        inner = dataset["synthetic"]
        checked = {**data, "dataset": {"synthetic": inner if isinstance(inner, Mapping) else {}}}
        for key in dataset:
            if key != "synthetic":
                meant = (f"{dotted((*at, 'dataset'))}.synthetic.{key}",)
                below = meant if f"dataset.{key}" in field_paths(model) else ()
                found.append(UnknownKey((*at, "dataset", key), below))
    for location, kind in _refusals(checked, model):
        if kind in _UNKNOWN:
            *section, key = location
            shown = (*at, *section, *(wrapper if section == ["dataset"] else ()))
            helped = len(found) < MAX_TOLD  # a look for similar names takes long, and nobody reads hundreds
            suggestions = _suggest(str(key), model, dotted(section), shown, at) if helped else ()
            found.append(UnknownKey((*shown, key), suggestions))
    position = _positions(data)
    return sorted(found, key=lambda unknown: position(unknown.path[len(at) :]))


def reject_unknown(unknown: Sequence[UnknownKey], document: LoadedDocument | None = None) -> None:
    """Report unknown keys, all at once.

    Raises:
        ConfigError: There are any; one line each, with file and line where there is a file.
    """
    lines = []
    for key in unknown[:MAX_TOLD]:
        message = key.message
        if len(key.path) == 1 and key.path[0] in _STUDY_ONLY_KEYS:
            message = f"unknown field {key.path[0]!r}: it belongs to a study, which has sweep: or experiments:."
        lines.append(f"{document.where(key.path)}: {message}" if document is not None else message)
    if lines:
        raise ConfigError(problem_report(lines, len(unknown)))


def is_study_document(data: Mapping[str, Any]) -> bool:
    """Whether a document describes several experiments rather than one."""
    return "sweep" in data or "experiments" in data


def experiment_data(document: LoadedDocument, model: type[BaseModel]) -> dict[str, Any]:
    """What an experiment file says, its keys checked against the model of an experiment.

    Raises:
        ConfigError: The file is a study, or has unknown keys (all of them are listed).
    """
    if is_study_document(document.data):
        raise ConfigError(
            f"{document.path}: this is a study (it has sweep: or experiments:), not a single experiment. "
            "Run it with llem run or run_study."
        )
    data = {key: value for key, value in document.data.items() if key != "version"}
    reject_unknown(unknown_keys(data, model), document)
    return data


def leads_nowhere(path: Sequence[str], value: Any, model: type[BaseModel]) -> bool:
    """Whether `path`, where `value` would stand, goes on below a field of a plain value, such as `precision.x`."""
    for part in reversed(path):
        value = {part: value}
    return any(
        len(location) < len(path) and location == tuple(path[: len(location)]) and kind != COMBINATION_ERROR
        for location, kind in _refusals(value, model)
    )


def dotted(path: Iterable[str | int]) -> str:
    """`("experiments", 2, "decoder", "top_k")` as `experiments[2].decoder.top_k`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def problem_report(problems: Sequence[str], count: int | None = None) -> str:
    """Problems, one a line and `MAX_TOLD` at the most, and how many there are: `count`, where not all are given."""
    count = len(problems) if count is None else count
    told = list(problems[:MAX_TOLD])
    more = [f"… and {count - len(told):,} more"] if count > len(told) else []
    return "\n".join([*told, *more, f"{count} {'problem' if count == 1 else 'problems'}; nothing was run."])


def describe_validation_error(
    error: ValidationError,
    document: LoadedDocument | None = None,
    overrides: Mapping[str, str] | None = None,
) -> list[str]:
    """One sentence per problem, in the order of the file: `experiment.yaml, line 7: n: must be at least 1, got 0`.

    `overrides` tells where values came from that did not come from the file, by dotted path: `{"n": "-n"}`.
    """
    sources = overrides or {}
    lines: list[tuple[int, str]] = []
    for location, message in _problems(error):
        written = f"{dotted(_written_location(location))}."
        source = next((sources[name] for name in sources if written.startswith(f"{name}.")), None)
        if source is not None:
            lines.append((0, f"{source}: {message}"))
        elif document is not None:
            lines.append((document.source_map.line(location) or 0, f"{document.where(location)}: {message}"))
        else:
            lines.append((0, message))
    return [line for _, line in sorted(lines, key=lambda numbered: numbered[0])]


def config_error(
    error: ValidationError, document: LoadedDocument | None = None, overrides: Mapping[str, str] | None = None
) -> ConfigError:
    """All that `describe_validation_error` says, as one error."""
    return ConfigError(problem_report(describe_validation_error(error, document, overrides)))


def _refusals(data: Mapping[str, Any], model: type[BaseModel]) -> list[tuple[Path, str]]:
    """Written location and Pydantic's type of everything that `model` refuses in `data`."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        return [(_written_location(refusal["loc"]), refusal["type"]) for refusal in details]
    return []


def _positions(data: Any) -> Callable[[Path], list[int]]:
    """Tells where a key stands in `data`: its number among its neighbours, at each depth."""
    numbers: dict[int, dict[str | int, int]] = {}

    def position(path: Path) -> list[int]:
        found, inner = [], data
        for part in path:
            if id(inner) not in numbers:
                numbers[id(inner)] = {key: number for number, key in enumerate(inner)}
            found.append(numbers[id(inner)][part])
            inner = inner[part]
        return found

    return position


def _suggest(key: str, model: type[BaseModel], section: str, shown: Path, at: Path) -> tuple[str, ...]:
    """Same name elsewhere below `at`, else a similar one in `section`, which is shown as `shown`, else anywhere."""
    wanted = key.replace("-", "_").lower()
    siblings = [path.rpartition(".")[2] for path in field_paths(model) if path.rpartition(".")[0] == section]
    if wanted in siblings:
        return (dotted((*shown, wanted)),)
    by_leaf = _paths_by_leaf(model)
    leaf = wanted.rpartition(".")[2]
    elsewhere = [path for path in by_leaf.get(leaf, ()) if path.endswith(wanted)]
    if OTHER_NAMES.get(leaf) in field_paths(model):
        elsewhere.insert(0, OTHER_NAMES[leaf])
    if elsewhere:
        return tuple(dotted((*at, path)) for path in elsewhere[:_MAX_SUGGESTIONS])
    here = difflib.get_close_matches(wanted, siblings, n=1, cutoff=_CLOSE)
    if here:
        return (dotted((*shown, here[0])),)
    similar = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=_CLOSE_ELSEWHERE)
    return tuple(dotted((*at, path)) for path in by_leaf[similar[0]][:_MAX_SUGGESTIONS]) if similar else ()


@cache
def _paths_by_leaf(model: type[BaseModel]) -> dict[str, list[str]]:
    """Dotted paths of all fields of a document by their last part."""
    by_leaf: dict[str, list[str]] = {}
    for path in field_paths(model):
        by_leaf.setdefault(path.rpartition(".")[2], []).append(path)
    return by_leaf


def _problems(error: ValidationError) -> list[tuple[Path, str]]:
    """Location, as Pydantic gives it, and sentence of every problem."""
    found: list[tuple[Path, str]] = []
    for details in error.errors(include_url=False):
        location = details["loc"]
        if details["type"] == COMBINATION_ERROR:
            found += [
                ((*location, *problem["path"].split(".")), problem["message"]) for problem in details["ctx"]["problems"]
            ]
        else:
            name = dotted(_written_location(location)) or "configuration"
            found.append((location, f"{name}: {_explain(details)}"))
    return found


def _written_location(location: Path) -> Path:
    """The location without union tags: `("dataset", "synthetic", "n")` is written `dataset.n`."""
    before = (None, *location)
    return tuple(part for previous, part in zip(before, location, strict=False) if (previous, part) not in _UNION_TAGS)


def _explain(details: ErrorDetails) -> str:
    value = details.get("input")
    shown = shown_value(value)
    if details["type"] == "literal_error":
        choices = details["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"must be one of {', '.join(choices)}, got {shown}{did_you_mean(value, choices)}"
    explanation = _EXPLANATIONS.get(details["type"])
    if explanation is None:
        return f"{details['msg']}, got {shown}"
    return explanation.format(shown=shown, **details.get("ctx", {}))


def did_you_mean(value: Any, choices: Sequence[str]) -> str:
    """The choice that `value` may have been meant to be, as the end of a sentence; nothing where none is like it."""
    if not isinstance(value, str):
        return ""
    known = OTHER_VALUES.get(value.lower())
    close = [known] if known in choices else difflib.get_close_matches(value.lower(), choices, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def shown_value(value: Any) -> str:
    """A value and its kind, short enough for one line."""
    kind = {str: " (text)", bool: " (a switch)", list: " (a list)", dict: " (a mapping)"}.get(type(value), "")
    return f"{quoted(value)}{kind}"


_EXPLANATIONS: Final[Mapping[str, str]] = {
    "missing": "is required but missing. Add it",
    "extra_forbidden": "unknown field. Remove it or correct its name",
    "value_error": "{error}, got {shown}",
    "int_type": "must be a whole number, got {shown}",
    "float_type": "must be a number, got {shown}",
    "bool_type": "must be true or false, got {shown}",
    "string_type": "must be text, got {shown}. Put it in quotes if it is meant as text",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters long, got {shown}",
    "finite_number": "must be a finite number, got {shown}",
    "greater_than_equal": "must be at least {ge:.15g}, got {shown}",
    "greater_than": "must be greater than {gt:.15g}, got {shown}",
    "less_than_equal": "must be at most {le:.15g}, got {shown}",
    "less_than": "must be less than {lt:.15g}, got {shown}",
    "list_type": "must be a list, got {shown}",
    "too_short": "must not be empty",
    "dict_type": "must be a mapping, got {shown}",
    NOT_A_SECTION: "must be a mapping of its fields, got {shown}{hint}",
}
"""What Pydantic's types of error mean; the names are those of its contexts."""
