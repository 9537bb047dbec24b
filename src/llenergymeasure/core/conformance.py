"""What the public suites for engines and meters have in common: a promise that was not kept, and how checks tell it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConformanceFailure:
    """A promise that an engine or a meter did not keep: which check found it, and what was seen."""

    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


def failures_of(check: str, messages: Iterator[str]) -> list[ConformanceFailure]:
    """What a check has to say; whatever it raises is a failure too, since it runs somebody else's code."""
    failures: list[ConformanceFailure] = []
    try:
        failures.extend(ConformanceFailure(check, message) for message in messages)
    except Exception as error:  # noqa: BLE001 (what is under test may raise anything)
        failures.append(ConformanceFailure(check, f"{type(error).__name__}: {error}"))
    return failures
