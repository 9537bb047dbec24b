"""The commands and flags of `llem`: what can be typed, and nothing about what it does.

Only Typer is imported here; each command imports its own work when it is called, so that `--help` stays quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="llem",
    help="Measure what an LLM inference configuration costs: joules per output token, tokens per second, FLOPs.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def run_app(arguments: list[str]) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: The words after `llem`.

    Returns:
        0 success; 1 an experiment, its pre-flight or a study failed; 2 usage or configuration; 130 interrupted.
    """
    try:
        app(arguments, prog_name="llem")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be a whole number, got {text!r}.") from error


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


@app.command()
def run(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="YAML or JSON file of an experiment, or of a study (with sweep: or experiments:)."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Hugging Face model ID, local path, or builtin/tiny-llama."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="Inference engine: pytorch, vllm or tensorrt."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="auto, cuda or cpu (pytorch.device; a GPU is required by default)."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", help="aienergyscore, a .jsonl file, or hf:<dataset>."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", parser=_whole_number, metavar="<int>", help="Prompts to run."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", parser=_whole_number, metavar="<int>", help="Batch setting of the chosen backend."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="fp32, fp16 or bf16."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for results."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate and estimate; run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the summary.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log messages and tracebacks too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of text.")] = False,
    export_csv: Annotated[bool, typer.Option("--export-csv", help="Also write a CSV beside the result.")] = False,
    cycles: Annotated[
        int | None,
        typer.Option(
            "--cycles",
            parser=_whole_number,
            metavar="<int>",
            help="Study: how often to run each experiment (3 unless the file says).",
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option("--order", help="Study: sequential, interleaved or shuffled."),
    ] = None,
    no_gaps: Annotated[bool, typer.Option("--no-gaps", help="Study: no thermal gaps between runs.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Study: go on with the study in this directory."),
    ] = None,
) -> None:
    """Run one experiment, or a whole study."""
    from llenergymeasure.cli.run import RunRequest, run_command

    request = RunRequest(
        config=config,
        model=model,
        backend=backend,
        device=device,
        dataset=dataset,
        n=n,
        batch_size=batch_size,
        precision=precision,
        output=output,
        dry_run=dry_run,
        quiet=quiet,
        verbose=verbose,
        as_json=as_json,
        export_csv=export_csv,
        cycles=cycles,
        order=order,
        no_gaps=no_gaps,
        resume=resume,
    )
    raise typer.Exit(run_command(request))


@app.command("config")
def config_command(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every setting and where it comes from.")] = False,
) -> None:
    """Show what this machine can do, and the user settings in force."""
    from llenergymeasure.cli.config import config_text

    typer.echo(config_text(verbose=verbose))
