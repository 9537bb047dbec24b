"""Which Python packages are installed, in a form that can be published."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import metadata
from typing import Any


def installed_packages(distributions: Iterable[metadata.Distribution] | None = None) -> list[str]:
    """Every installed distribution as `name==version`, sorted by name.

    One installed from version control carries its commit (`name==version (git 0123abcd…)`). Neither local paths nor
    addresses are told: they name users and may hold tokens.

    Args:
        distributions: What to list; by default everything that can be imported. Of two with one name the first is
            listed, which is the one that an import finds.
    """
    lines: dict[str, str] = {}
    for distribution in metadata.distributions() if distributions is None else distributions:
        if "Name" not in distribution.metadata:  # a damaged installation
            continue
        name = distribution.metadata["Name"]
        if name.lower() not in lines:
            lines[name.lower()] = f"{name}=={distribution.version}{_commit(distribution)}"
    return [lines[key] for key in sorted(lines)]


def installed_version(package: str) -> str | None:
    """Version of a distribution; `None`: not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(distribution: metadata.Distribution) -> str:
    """The version-control commit from `direct_url.json` (PEP 610), or nothing."""
    text = distribution.read_text("direct_url.json")
    if text is None:
        return ""
    try:
        origin: Any = json.loads(text).get("vcs_info") or {}
        return f" ({origin['vcs']} {origin['commit_id']})" if "commit_id" in origin else ""
    except (ValueError, AttributeError, KeyError):
        return ""
