"""What all configuration models share: strictness, and errors that name a field."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, JsonValue, StringConstraints
from pydantic_core import PydanticCustomError

COMBINATION_ERROR: Final = "config_combination"
"""Pydantic error type of values that are fine one by one but not together."""

NonBlankStr = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class ConfigModel(BaseModel):
    """A frozen model that knows no unknown keys and guesses nothing.

    Strict: `"8"`, `8.0` and `true` are not the integer 8, and NaN and infinity are not numbers one can run with. An
    integer is accepted where a float is meant.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


def try_values(*values: float) -> dict[str, JsonValue]:
    """Field metadata: values that introspection offers for tests instead of those it would derive."""
    return {"test_values": list(values)}


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why values do not go together.

    Args:
        path: Dotted path of the field to change, relative to the model that found the problem.
        message: What is wrong and how to mend it, naming field and value.
    """

    path: str
    message: str


def reject(problems: Iterable[Problem]) -> None:
    """Turn problems, if there are any, into one Pydantic error that carries all of them.

    Raises:
        PydanticCustomError: Of type `COMBINATION_ERROR`; its context lists the problems for whoever renders it.
    """
    found = tuple(problems)
    if found:
        raise PydanticCustomError(
            COMBINATION_ERROR,
            "{text}",
            {
                "text": "\n".join(problem.message for problem in found),
                "problems": [{"path": problem.path, "message": problem.message} for problem in found],
            },
        )
