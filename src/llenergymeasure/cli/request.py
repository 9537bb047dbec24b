"""What can be typed after `llem run`: one field of `RunRequest` per flag, and nothing about it anywhere else.

A field says how its flag is typed, what it sets in the configuration, and whether only a study understands it; the
command's signature, the overrides and the words of errors are read off these fields.
"""

# ruff: noqa: RUF009 (the functions in the defaults below are the rows of the table)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Final, get_type_hints

import typer

from llenergymeasure.config.ssot import BATCH_SIZE_FIELD, BATCH_SIZE_OVERRIDE
from llenergymeasure.security import quoted, user_path

SHORTEST_RUN: Final = "llem run --model builtin/tiny-llama --device cpu -n 20"
"""The shortest command that works on any machine; shown to whoever typed too little."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that says something to the configuration.

    Args:
        name: As it is typed.
        sets: The config fields it sets, by dotted path.
        to: What it sets them to; `None`: what was typed.
        study_only: Whether a single experiment has no use for it.
    """

    name: str
    sets: tuple[str, ...]
    to: Any
    study_only: bool


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"must be a whole number, got {quoted(text)}.") from error


def _path(text: str) -> Path:
    if not text.strip():
        raise typer.BadParameter("must not be empty. Name a place, or leave it out.")
    return user_path(text)


def _text(*names: str, says: str, sets: tuple[str, ...] = (), study_only: bool = False) -> Any:
    """A row of a flag with a value; `says` is its line in the help."""
    return _row(typer.Option(None, *names, help=says), Flag(names[0], sets, None, study_only))


def _place(*names: str, says: str, sets: tuple[str, ...] = (), study_only: bool = False) -> Any:
    """A row of a flag with a path."""
    option = typer.Option(None, *names, help=says, parser=_path, metavar="<path>")
    return _row(option, Flag(names[0], sets, None, study_only))


def _number(name: str, *, says: str, sets: tuple[str, ...], study_only: bool = False) -> Any:
    """A row of a flag with a whole number."""
    option = typer.Option(None, name, help=says, parser=_whole_number, metavar="<int>")
    return _row(option, Flag(name, sets, None, study_only))


def _switch(*names: str, says: str, sets: tuple[str, ...] = (), to: Any = None, study_only: bool = False) -> Any:
    """A row of a flag without a value, which sets its fields to `to`."""
    return _row(typer.Option(False, *names, help=says), Flag(names[0], sets, to, study_only))


def _row(option: Any, flag: Flag | None = None) -> Any:
    return field(default=option.default, metadata={"option": option, "flag": flag})


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What was typed after `llem run`; `None` and `False` mean "not given"."""

    config: Path | None = _row(
        typer.Argument(
            None,
            metavar="CONFIG",
            parser=_path,
            help="YAML or JSON file of an experiment, or of a study (with sweep: or experiments:).",
        )
    )
    model: str | None = _text(
        "--model", "-m", sets=("model",), says="Hugging Face model ID, local path, or builtin/tiny-llama."
    )
    backend: str | None = _text(
        "--backend", "-b", sets=("backend",), says="Inference engine: pytorch, vllm or tensorrt."
    )
    device: str | None = _text(
        "--device", sets=("pytorch.device",), says="auto, cuda or cpu (pytorch.device; a GPU is required by default)."
    )
    dataset: str | None = _text(
        "--dataset", "-d", sets=("dataset",), says="aienergyscore, a .jsonl file, or hf:<dataset>."
    )
    n: int | None = _number("-n", sets=("n",), says="Prompts to run.")
    batch_size: int | None = _number(
        "--batch-size", sets=(BATCH_SIZE_OVERRIDE,), says="Batch setting of the chosen backend."
    )
    precision: str | None = _text("--precision", sets=("precision",), says="fp32, fp16 or bf16.")
    output: Path | None = _place("--output", "-o", sets=("output_dir",), says="Directory for results.")
    dry_run: bool = _switch("--dry-run", says="Validate and estimate; run nothing.")
    quiet: bool = _switch("--quiet", "-q", says="No progress, only the summary.")
    verbose: bool = _switch("--verbose", "-v", says="Log messages and tracebacks too.")
    as_json: bool = _switch("--json", says="Print the result as JSON instead of text.")
    export_csv: bool = _switch("--export-csv", says="Also write a CSV beside the result.")
    cycles: int | None = _number(
        "--cycles",
        sets=("execution.n_cycles",),
        study_only=True,
        says="Study: how often to run each experiment (3 unless the file says).",
    )
    order: str | None = _text(
        "--order",
        sets=("execution.cycle_order",),
        study_only=True,
        says="Study: sequential, interleaved or shuffled.",
    )
    no_gaps: bool = _switch(
        "--no-gaps",
        sets=("execution.config_gap_seconds", "execution.cycle_gap_seconds"),
        to=0.0,
        study_only=True,
        says="Study: no thermal gaps between runs.",
    )
    cluster: str | None = _text(
        "--cluster",
        study_only=True,
        says="Study: spread it over the Ray cluster at this address, or auto; none: on this machine alone.",
    )
    resume: Path | None = _place("--resume", study_only=True, says="Study: go on with the study in this directory.")

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
        return [flag.name for flag, _ in self._given() if flag.study_only]

    def fixed_by_resuming(self) -> list[str]:
        """The flags given that a study in its own directory leaves no room for.

        Beside a study file they change that file's study, which then must be the one that was begun; where its results
        are cannot change at all.
        """
        flags = [flag for flag, _ in self._given() if flag.sets and not flag.study_only]
        return [flag.name for flag in flags if self.config is None or flag.sets == ("output_dir",)]

    def overrides(self) -> dict[str, Any]:
        """What the flags given set, by the dotted path of the config field."""
        return {path: typed if flag.to is None else flag.to for flag, typed in self._given() for path in flag.sets}

    def sources(self) -> dict[str, str]:
        """The flags given, by the config field each sets."""
        sources = {path: flag.name for flag, _ in self._given() for path in flag.sets}
        if BATCH_SIZE_OVERRIDE in sources:
            sources |= dict.fromkeys(BATCH_SIZE_FIELD.values(), sources.pop(BATCH_SIZE_OVERRIDE))
        if self.device is not None and self.config is None:
            sources["pytorch"] = "--device"  # a section that nobody else wrote
        return sources

    def _given(self) -> Iterator[tuple[Flag, Any]]:
        """The flags given, each with its value."""
        for row in fields(self):
            flag, typed = row.metadata["flag"], getattr(self, row.name)
            if flag is not None and typed is not None and typed is not False:
                yield flag, str(typed) if isinstance(typed, Path) else typed


def signature() -> Signature:
    """How `llem run` is called, for Typer: one parameter per field of `RunRequest`."""
    hints = get_type_hints(RunRequest)
    return Signature(
        [
            Parameter(row.name, Parameter.KEYWORD_ONLY, default=row.metadata["option"], annotation=hints[row.name])
            for row in fields(RunRequest)
        ]
    )
