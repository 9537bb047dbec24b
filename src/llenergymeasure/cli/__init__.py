"""The `llem` command.

`main` answers `--version` by itself: that must not cost the half second that building the rest takes.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line with `sys.argv` and exit with its code."""
    if sys.argv[1:] == ["--version"]:
        from llenergymeasure.constants import VERSION

        sys.stdout.write(f"llem {VERSION}\n")
        return
    from llenergymeasure.cli.app import run_app

    sys.exit(run_app(sys.argv[1:]))
