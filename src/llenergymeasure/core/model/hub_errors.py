"""Errors of other libraries, told in one sentence."""

from __future__ import annotations

from typing import Final

_TRANSIENT_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})
_NETWORK_ERRORS: Final = frozenset(
    {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "LocalEntryNotFoundError"}
)
"""Names of classes in Python, requests, httpx and the Hub's client, which says the last when it is cut off."""


def first_line(error: BaseException) -> str:
    """Type and first line of an error (two, where the first only announces the second); loaders write whole pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    announces = lines[0].endswith(":") and len(lines) > 1
    return f"{type(error).__name__}: {' '.join(lines[:2]) if announces else lines[0]}"


def explain_hub_error(model: str, revision: str | None, filename: str, error: Exception) -> str:
    """One sentence on why `model` cannot be had from the Hub, with the fix.

    The client's errors go by name: the classes moved between its releases, and one stands for several causes.
    """
    names = {base.__name__ for cause in _causes(error) for base in type(cause).__mro__}
    if "OfflineModeIsEnabled" in names:
        return (
            f"{model} is not in the local cache, and HF_HUB_OFFLINE forbids asking the Hub. Unset it once to fetch it."
        )
    if "GatedRepoError" in names:
        return f"{model} is gated. Accept its terms on the Hub and set HF_TOKEN to a token of that account."
    if "RevisionNotFoundError" in names:
        return f"{model} has no revision {revision!r}. Name a branch, tag or commit it has, or remove revision."
    if "RepositoryNotFoundError" in names:
        return f"{model} is neither a directory here nor on the Hub. Check the spelling; a private one needs HF_TOKEN."
    if "RemoteEntryNotFoundError" in names or (
        "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names
    ):
        return f"{model} is on the Hub but has no {filename}: it is not in the format transformers loads."
    if "HFValidationError" in names:
        return f"{model!r} is neither a directory here nor an id of the form owner/name."
    return f"{model} cannot be fetched from the Hub now and is not in the local cache ({first_line(error)})"


def is_transient_hub_error(error: Exception) -> bool:
    """Whether another attempt can help: the Hub is overloaded, or the network failed while the file is not cached."""
    causes = _causes(error)
    names = {base.__name__ for cause in causes for base in type(cause).__mro__}
    if "OfflineModeIsEnabled" in names or "gaierror" in names:  # no network to wait for: not even the name is known
        return False
    statuses = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes} - {None}
    return bool(statuses & _TRANSIENT_STATUS) if statuses else bool(names & _NETWORK_ERRORS)


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return causes
