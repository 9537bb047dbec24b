"""A home directory for users that have none, as a container's user may be: no absolute HOME, no entry in passwd."""

from __future__ import annotations

import contextlib
import os

from llenergymeasure.constants import APP_NAME


def provide_home() -> None:
    """Name a directory among the temporary files as HOME where this user has no home; for a program of our own.

    Where none can be had, HOME stays as it is, and what needs a home says so.
    """
    if os.path.isabs(os.environ.get("HOME", os.path.expanduser("~"))):
        return
    import tempfile  # few need it, and each import costs the command line

    with contextlib.suppress(OSError):
        directory = os.path.join(tempfile.gettempdir(), f"{APP_NAME}-{os.getuid()}")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if os.lstat(directory).st_uid != os.getuid() or os.path.islink(directory):
            directory = tempfile.mkdtemp(prefix=f"{APP_NAME}-")
        os.environ["HOME"] = directory
