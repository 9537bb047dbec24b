"""Pydantic's findings in plain English: place, field, value, fix."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llenergymeasure.config.base import COMBINATION_ERROR
from llenergymeasure.config.schema import Path, dotted
from llenergymeasure.config.yaml_io import LoadedDocument

_UNION_TAGS: Final = {("dataset", "name"), ("dataset", "synthetic")}
"""Parts Pydantic puts into a location to name a union's branch; nobody writes them."""


def problem_report(problems: Sequence[str]) -> str:
    """All problems, one a line, and how many there are."""
    noun = "problem" if len(problems) == 1 else "problems"
    return "\n".join([*problems, f"{len(problems)} {noun}; nothing was run."])


def describe_validation_error(
    error: ValidationError,
    document: LoadedDocument | None = None,
    overrides: Mapping[str, str] | None = None,
) -> list[str]:
    """One sentence per problem, in the order of the file: `experiment.yaml, line 7: n: must be at least 1, got 0`.

    Args:
        error: What validating a configuration model raised.
        document: The file the values came from, for its name and lines.
        overrides: Where values came from that did not come from the file, by dotted path: `{"n": "-n"}`.
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
    parts: list[str | int] = []
    for part in location:
        if parts and (parts[-1], part) in _UNION_TAGS:
            continue
        parts.append(part)
    return tuple(parts)


def _explain(details: ErrorDetails) -> str:
    explain = _EXPLANATIONS.get(details["type"])
    value = details.get("input")
    if explain is None:
        return f"{details['msg']}, got {shown_value(value)}"
    return explain(details.get("ctx", {}), value)


def _choices(context: Mapping[str, Any], value: Any) -> str:
    choices = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f". Did you mean {close[0]!r}?" if close else ""
    return f"must be one of {', '.join(choices)}, got {shown_value(value)}{hint}"


def _plain(requirement: str) -> Callable[[Mapping[str, Any], Any], str]:
    return lambda _, value: f"{requirement}, got {shown_value(value)}"


def _bound(words: str, key: str) -> Callable[[Mapping[str, Any], Any], str]:
    return lambda context, value: f"must be {words} {context[key]:g}, got {shown_value(value)}"


def shown_value(value: Any) -> str:
    """A value and its kind, short enough for one line."""
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    kind = {str: " (text)", bool: " (a switch)", list: " (a list)", dict: " (a mapping)"}.get(type(value), "")
    return f"{text}{kind}"


_EXPLANATIONS: Final[Mapping[str, Callable[[Mapping[str, Any], Any], str]]] = {
    "missing": lambda *_: "is required but missing. Add it",
    "extra_forbidden": lambda *_: "unknown field. Remove it or correct its name",
    "literal_error": _choices,
    "value_error": lambda context, value: f"{context['error']}, got {shown_value(value)}",
    "int_type": _plain("must be a whole number"),
    "float_type": _plain("must be a number"),
    "bool_type": _plain("must be true or false"),
    "string_type": lambda _, value: f"must be text, got {shown_value(value)}. Put it in quotes if it is meant as text",
    "string_too_short": lambda *_: "must not be empty",
    "finite_number": _plain("must be a finite number"),
    "greater_than_equal": _bound("at least", "ge"),
    "greater_than": _bound("greater than", "gt"),
    "less_than_equal": _bound("at most", "le"),
    "less_than": _bound("less than", "lt"),
    "list_type": _plain("must be a list"),
    "too_short": lambda *_: "must not be empty",
    "dict_type": _plain("must be a mapping"),
    "model_type": _plain("must be a mapping of its fields"),
    "model_attributes_type": _plain("must be a mapping of its fields"),
}
