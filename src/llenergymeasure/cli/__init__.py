"""The `llem` command.

`main` answers `--version` by itself: that must not cost the half second that building the rest takes. SIGTERM and a
closed terminal end every other command as Ctrl-C does, from its imports on: orderly, all torn down.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
    with signals_as_interrupt():
        drop_unusable_bar_settings()
        from llenergymeasure.cli.app import run_app

        code = run_app(arguments)
        sys.stdout.flush()
    return code


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `KeyboardInterrupt` for the length of a `with` block; for the main thread only.

    A signal that is ignored stays so: that is how `nohup` works.
    """
    import signal

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    endings = [name for name in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) == signal.SIG_DFL]
    for name in endings:
        signal.signal(name, interrupt)
    try:
        yield
    finally:
        for name in endings:
            signal.signal(name, signal.SIG_DFL)


def drop_unusable_bar_settings() -> None:
    """Take tqdm's variables out of the environment, for children too, where it cannot do with them.

    No bar could be drawn with them, nor an engine imported that draws any.
    """
    names = [name for name in os.environ if name.startswith("TQDM_")]
    if not names:
        return
    import io

    try:
        from tqdm import tqdm

        with tqdm(total=2, file=io.StringIO()) as bar:
            bar.clear()
    except Exception as error:  # noqa: BLE001 (whatever comes of a value that it did not expect)
        for name in names:
            del os.environ[name]
        for module in [module for module in sys.modules if module.partition(".")[0] == "tqdm"]:
            del sys.modules[module]  # it reads them when it is imported
        with suppress(OSError):
            sys.stderr.write(f"{', '.join(names)}: ignored, for tqdm cannot use them: {error}\n")


def _make_streams_safe() -> None:
    """Let no figure be lost to a closed stream, or to an encoding that has no `±`."""
    open_standard_streams()
    replace_what_streams_cannot_say()
