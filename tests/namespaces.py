"""Commands as another user: tests may run as root, whom no permission stops."""

from __future__ import annotations

import shutil
import subprocess

import pytest

USER = 54321
"""A user without an entry in passwd."""


def as_somebody(*command: str) -> list[str]:
    """The command as it is run by a user without privileges, who owns what the user of the tests owns."""
    prefix = ["unshare", "--user", f"--map-user={USER}"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs user namespaces")
    return [*prefix, *command]
