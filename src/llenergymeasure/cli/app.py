"""The commands of `llem`: what can be typed, and nothing about what it does. The flags of `run` are in `request`.

Only Typer is imported here; each command imports its own work when it is called, so that `--help` stays quick.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llenergymeasure.cli.request import RunRequest, signature

app = typer.Typer(
    name="llem",
    help="Measure what an LLM inference configuration costs: joules per output token, tokens per second, FLOPs.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def run_app(arguments: list[str]) -> int:
    """Run the command line, given the words after `llem`, and return its exit code.

    Returns:
        0 success; 1 an experiment, its pre-flight or a study failed; 2 usage or configuration; 130 interrupted.
    """
    try:
        app(arguments, prog_name="llem")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        from llenergymeasure.constants import VERSION

        typer.echo(f"llem {VERSION}")
        raise typer.Exit


@app.callback()
def llem(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Measure what an LLM inference configuration costs."""


def run(**typed: Any) -> None:
    """Run one experiment, or a whole study."""
    from llenergymeasure.cli.run import run_command

    raise typer.Exit(run_command(RunRequest(**typed)))


run.__signature__ = signature()  # type: ignore[attr-defined] # whence Typer takes the flags
app.command()(run)


@app.command("config")
def config_command(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every setting and where it comes from.")] = False,
) -> None:
    """Show what this machine can do, and the user settings in force."""
    from llenergymeasure.cli.config import config_text
    from llenergymeasure.cli.terminal import EXIT_OK, exit_code_of, print_result

    def show() -> int:
        print_result(config_text(verbose=verbose))
        return EXIT_OK

    raise typer.Exit(exit_code_of(show, verbose=verbose))
