"""Hides the packages named in HIDDEN_PACKAGES from a Python that has this directory on its path."""

from __future__ import annotations

import importlib.machinery
import os
import sys

HIDDEN = set(os.environ.get("HIDDEN_PACKAGES", "").split(","))


class Finder(importlib.machinery.PathFinder):
    """Finds what is installed, except for what is hidden."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *context):  # type: ignore[no-untyped-def]
        return (found for found in super().find_distributions(*context) if found.name.lower() not in HIDDEN)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
