"""Every error that llenergymeasure raises on purpose.

A message says what is wrong, where (field, file, device) and how to mend it; the command line prints it as it is,
without a traceback. Pydantic's `ValidationError` is not wrapped: it passes through the library unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

ENDINGS: Final = (KeyboardInterrupt, SystemExit)
"""What ends a program and is nobody's failure. Anything else that a package raises while it is imported is one, the
panic of a native extension included, which is no `Exception`."""


class LLEMError(Exception):
    """Base class of all errors below."""


class ConfigError(LLEMError):
    """A configuration, data set or flag cannot be used as written."""


class DatasetError(ConfigError):
    """A data set cannot be read, or holds fewer prompts than the experiment asks for."""


class BackendError(LLEMError):
    """An inference engine is missing, unsupported, or failed to load or generate."""


class EnergyError(LLEMError):
    """An energy backend is missing, or its sensor gave an answer that cannot be used."""


_FAILURE = "\n  - "


class PreFlightError(LLEMError):
    """The experiment cannot run on this machine; holds every reason at once, each with its fix."""

    def __init__(self, failures: str | Sequence[str]) -> None:
        self.failures: tuple[str, ...] = (failures,) if isinstance(failures, str) else tuple(failures)
        noun = "issue" if len(self.failures) == 1 else "issues"
        lines = "".join(f"{_FAILURE}{failure}" for failure in self.failures)
        super().__init__(f"Pre-flight failed: {len(self.failures)} {noun}{lines}")

    @classmethod
    def from_text(cls, text: str) -> PreFlightError:
        """The error whose message is `text`: as another process tells it."""
        return cls(text.split(_FAILURE)[1:])

    def __reduce__(self) -> tuple[type[PreFlightError], tuple[tuple[str, ...]]]:
        return (type(self), (self.failures,))  # the default would pickle the rendered message instead


class ExperimentError(LLEMError):
    """A measurement started and could not be finished."""


class InvalidStateTransitionError(ExperimentError):
    """An experiment was moved to a state that does not follow from the one it is in."""

    def __init__(self, from_state: str, to_state: str) -> None:
        self.from_state = from_state
        self.to_state = to_state
        super().__init__(f"Invalid state transition: {from_state} -> {to_state}")

    def __reduce__(self) -> tuple[type[InvalidStateTransitionError], tuple[str, str]]:
        return (type(self), (self.from_state, self.to_state))


class StudyError(LLEMError):
    """A study cannot start, go on or be resumed."""


class DockerError(LLEMError):
    """Docker is missing, or a container could not be started or did not do its work."""


class PersistenceError(LLEMError):
    """A result could not be written, or a file on disk is not a result."""


class ComparisonError(LLEMError):
    """Results cannot be compared as they are, or a decision about them cannot be made."""


class ResultRescuedError(PersistenceError):
    """A result could not be written in the directory `wanted`, and was saved elsewhere, as the file `saved`."""

    def __init__(self, wanted: Path, saved: Path, reason: str) -> None:
        self.wanted = wanted
        self.saved = saved
        self.reason = reason
        super().__init__(f"The result could not be saved in {wanted}: {reason} It was saved as {saved} instead.")

    def __reduce__(self) -> tuple[type[ResultRescuedError], tuple[Path, Path, str]]:
        return (type(self), (self.wanted, self.saved, self.reason))
