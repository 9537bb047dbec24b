"""The `llem` command.

`main` answers `--version` by itself: that must not cost the half second that building the rest takes.
"""

from __future__ import annotations

import io
import sys

from llenergymeasure.core.host.home import provide_home
from llenergymeasure.core.host.streams import open_standard_streams


def main() -> None:
    """Run the command line with `sys.argv` and exit with its code."""
    _make_streams_safe()
    provide_home()
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
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
