"""`llem run`: from flags and a file to a summary on stdout and an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llenergymeasure.cli.app import SHORTEST_RUN

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What was typed after `llem run`; `None` and `False` mean "not given"."""

    config: Path | None = None
    model: str | None = None
    backend: str | None = None
    device: str | None = None
    dataset: str | None = None
    n: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    output: Path | None = None
    dry_run: bool = False
    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    export_csv: bool = False
    cycles: int | None = None
    order: str | None = None
    no_gaps: bool = False
    resume: Path | None = None

    def contradictions(self) -> list[str]:
        """What cannot be meant, before any file is read."""
        found = []
        if self.config is None and self.model is None and self.resume is None:
            found.append(
                f"nothing to run: give a config file or --model. The shortest command that works: {SHORTEST_RUN}"
            )
        if self.quiet and self.verbose:
            found.append("--quiet and --verbose contradict each other; give one of them")
        return found

    def study_flags(self) -> list[str]:
        """The flags given that only a study understands."""
        given = {
            "--cycles": self.cycles is not None,
            "--order": self.order is not None,
            "--no-gaps": self.no_gaps,
            "--resume": self.resume is not None,
        }
        return [flag for flag, is_given in given.items() if is_given]

    def overrides(self) -> dict[str, Any]:
        """The flags that set config fields, by dotted path; a batch size is not among them (see `batch_override`)."""
        return {
            "model": self.model,
            "backend": self.backend,
            "pytorch.device": self.device,
            "dataset": self.dataset,
            "n": self.n,
            "precision": self.precision,
            "output_dir": None if self.output is None else str(self.output),
        }
