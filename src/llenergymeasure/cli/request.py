"""What can be typed after `llem run`: one field of `RunRequest` per flag, and nothing about it anywhere else.

A field says how its flag is typed, what it sets in the configuration, and whether only a study understands it; the
command's signature, the overrides and the words of errors are read off these fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_type_hints

import typer

from llenergymeasure.config.ssot import BATCH_SIZE_FIELD, BATCH_SIZE_OVERRIDE

SHORTEST_RUN: Final = "llem run --model builtin/tiny-llama --device cpu -n 20"
"""The shortest command that works on any machine; shown to whoever typed too little."""


@dataclass(frozen=True, slots=True)
class Sets:
    """What a flag means to the configuration.

    Args:
        fields: The config fields it sets, by dotted path.
        value: What it sets them to; `None`: what was typed.
        study_only: Whether a single experiment has no use for it.
    """

    fields: tuple[str, ...] = ()
    value: Any = None
    study_only: bool = False


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be a whole number, got {text!r}.") from error


_INT: Final[dict[str, Any]] = {"parser": _whole_number, "metavar": "<int>"}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What was typed after `llem run`; `None` and `False` mean "not given"."""

    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="YAML or JSON file of an experiment, or of a study (with sweep: or experiments:)."
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Hugging Face model ID, local path, or builtin/tiny-llama."),
        Sets(("model",)),
    ] = None
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="Inference engine: pytorch, vllm or tensorrt."),
        Sets(("backend",)),
    ] = None
    device: Annotated[
        str | None,
        typer.Option("--device", help="auto, cuda or cpu (pytorch.device; a GPU is required by default)."),
        Sets(("pytorch.device",)),
    ] = None
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", help="aienergyscore, a .jsonl file, or hf:<dataset>."),
        Sets(("dataset",)),
    ] = None
    n: Annotated[
        int | None,
        typer.Option("-n", help="Prompts to run.", **_INT),
        Sets(("n",)),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Batch setting of the chosen backend.", **_INT),
        Sets((BATCH_SIZE_OVERRIDE,)),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="fp32, fp16 or bf16."),
        Sets(("precision",)),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for results."),
        Sets(("output_dir",)),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate and estimate; run nothing.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the summary.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log messages and tracebacks too.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of text.")] = False
    export_csv: Annotated[bool, typer.Option("--export-csv", help="Also write a CSV beside the result.")] = False
    cycles: Annotated[
        int | None,
        typer.Option("--cycles", help="Study: how often to run each experiment (3 unless the file says).", **_INT),
        Sets(("execution.n_cycles",), study_only=True),
    ] = None
    order: Annotated[
        str | None,
        typer.Option("--order", help="Study: sequential, interleaved or shuffled."),
        Sets(("execution.cycle_order",), study_only=True),
    ] = None
    no_gaps: Annotated[
        bool,
        typer.Option("--no-gaps", help="Study: no thermal gaps between runs."),
        Sets(("execution.config_gap_seconds", "execution.cycle_gap_seconds"), value=0.0, study_only=True),
    ] = False
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Study: go on with the study in this directory."),
        Sets(study_only=True),
    ] = None

    def contradictions(self) -> list[str]:
        """What cannot be meant, found before any file is read."""
        found = []
        if self.config is None and self.model is None and self.resume is None:
            found.append(
                f"Nothing to run: give a config file or --model. The shortest command that works:\n  {SHORTEST_RUN}"
            )
        if self.quiet and self.verbose:
            found.append("--quiet and --verbose contradict each other. Give one of them.")
        of_results = [flag for flag, given in (("--json", self.as_json), ("--export-csv", self.export_csv)) if given]
        if self.dry_run and of_results:
            found.append(f"{', '.join(of_results)}: for results, and --dry-run has none. Leave one of the two out.")
        return found

    def study_flags(self) -> list[str]:
        """The flags given that only a study understands."""
        return [flag for flag, _, sets in self._given() if sets.study_only]

    def overrides(self) -> dict[str, Any]:
        """What the flags given set, by the dotted path of the config field."""
        return {
            field: typed if sets.value is None else sets.value
            for _, typed, sets in self._given()
            for field in sets.fields
        }

    def sources(self) -> dict[str, str]:
        """The flags given, by the config field each sets."""
        sources = {field: flag for flag, _, sets in self._given() for field in sets.fields}
        if BATCH_SIZE_OVERRIDE in sources:
            sources |= dict.fromkeys(BATCH_SIZE_FIELD.values(), sources.pop(BATCH_SIZE_OVERRIDE))
        if self.device is not None and self.config is None:
            sources["pytorch"] = "--device"  # a section that nobody else wrote
        return sources

    def _given(self) -> Iterator[tuple[str, Any, Sets]]:
        """The flags given that mean something to the configuration: as they are typed, their value, what they set."""
        for name, sets in _meanings().items():
            value = getattr(self, name)
            if value is not None and value is not False:
                flag = f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"
                yield flag, str(value) if isinstance(value, Path) else value, sets


@cache
def _meanings() -> dict[str, Sets]:
    """What each flag means to the configuration, by the field of the request."""
    hints = get_type_hints(RunRequest, include_extras=True)
    return {name: mark for name, hint in hints.items() for mark in get_args(hint) if isinstance(mark, Sets)}
