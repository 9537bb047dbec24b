"""Files the report of a run under docs/validation/, where it becomes evidence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_check_parts.plots import draw
from gpu_check_parts.report import as_markdown
from gpu_check_parts.wheels import ROOT

NO_EVIDENCE = "| – | no evidence yet | | |"
"""The row of the index that the first report replaces."""

VERDICTS = ("as expected", "not as expected", "could not tell")


class NotEvidenceError(Exception):
    """The directory holds nothing that could be filed."""


def adopt(source: Path, root: Path = ROOT) -> Path:
    """File the run in `source` under docs/validation/<gpu>/<time>/ and name it in index and navigation.

    Raises:
        NotEvidenceError: It is a rehearsal, or no run at all, or has been filed before.
    """
    try:
        report = json.loads((source / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotEvidenceError(f"{source} holds no report.json of a run ({error})") from error
    machine = report["machine"]
    if machine["rehearsal"]:
        raise NotEvidenceError(f"{source} is a rehearsal on a scripted board: it says nothing about a real one")
    place = Path("validation") / slug(machine["gpu"]) / slug(machine["taken_at"])
    target = root / "docs" / place
    if target.exists():
        raise NotEvidenceError(f"{target} is there already")
    target.mkdir(parents=True)
    if isinstance(report["plots"], str) and (plots := draw(report["series"], target)):
        report["plots"] = plots
    for file in source.iterdir():
        if file.is_file() and file.name not in ("report.md", "report.json"):
            shutil.copyfile(file, target / file.name)
    (target / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (target / "report.md").write_text(as_markdown(report), encoding="utf-8")
    _add_to_index(root / "docs/validation/README.md", report, place.relative_to("validation"))
    _add_to_navigation(root / "mkdocs.yml", machine, place)
    return target


def slug(name: str) -> str:
    """A name as a directory has it: `NVIDIA H100 80GB HBM3` becomes `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _add_to_index(index: Path, report: Mapping[str, Any], place: Path) -> None:
    """Add a row to the table of real boards."""
    machine = report["machine"]
    verdicts = [line["verdict"] for part in report["parts"] for line in part["lines"]]
    tally = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS)
    row = f"| {machine['taken_at']} | [{machine['gpu']}]({place.as_posix()}/report.md) | {tally} | nothing yet |"
    text = index.read_text(encoding="utf-8")
    head, line, rest = text.partition("|---|---|---|---|\n")
    if not line:
        raise NotEvidenceError(f"{index} has no table of real boards to add a row to")
    index.write_text(f"{head}{line}{row}\n{rest.replace(NO_EVIDENCE + chr(10), '', 1)}", encoding="utf-8")


def _add_to_navigation(mkdocs: Path, machine: Mapping[str, Any], place: Path) -> None:
    text = mkdocs.read_text(encoding="utf-8")
    anchor = re.search(r"^( *)- .*validation/README\.md$\n", text, re.MULTILINE)
    if anchor is None:
        raise NotEvidenceError(f"{mkdocs} does not name validation/README.md")
    day = machine["taken_at"][:10]
    entry = f'{anchor[1]}- "Validation: {machine["gpu"]}, {day}": {place.as_posix()}/report.md\n'
    mkdocs.write_text(text[: anchor.end()] + entry + text[anchor.end() :], encoding="utf-8")
