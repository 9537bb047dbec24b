"""The `llem` command.

`main` answers `--version` by itself: that must not cost the half second that building the rest takes.
"""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run the command line with `sys.argv` and exit with its code."""
    _make_streams_safe()
    if sys.argv[1:] == ["--version"]:
        from llenergymeasure.constants import VERSION

        sys.stdout.write(f"llem {VERSION}\n")
        return
    try:
        from llenergymeasure.cli.app import run_app

        code = run_app(sys.argv[1:])
    except KeyboardInterrupt:  # while modules were still being imported
        code = 130
    sys.exit(code)


def _make_streams_safe() -> None:
    """Let no figure be lost to a closed stream, or to an encoding that has no `±`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started as `llem run … 2>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the process ends)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
