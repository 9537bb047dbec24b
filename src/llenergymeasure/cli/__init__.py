"""The `llem` command.

`main` answers `--version` by itself: that must not cost the half second that building the rest takes.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from llenergymeasure.core.host.home import provide_home
from llenergymeasure.stdout import discard_stdout, open_standard_streams, replace_what_streams_cannot_say, write_stdout


def main() -> None:
    """Run the command line with `sys.argv`; exits with its code unless that is 0."""
    _make_streams_safe()
    provide_home()
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:  # while modules were still being imported
        code = 130
    except OSError as error:  # a help page that stdout does not take
        discard_stdout()
        with suppress(OSError):
            sys.stderr.write(f"Cannot write to stdout: {error.strerror}.\n")
        code = 1
    if code:
        sys.exit(code)


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from llenergymeasure.constants import VERSION

        write_stdout(f"llem {VERSION}\n")
        return 0
    from llenergymeasure.cli.app import run_app

    code = run_app(arguments)
    sys.stdout.flush()
    return code


def _make_streams_safe() -> None:
    """Let no figure be lost to a closed stream, or to an encoding that has no `±`."""
    open_standard_streams()
    replace_what_streams_cannot_say()
