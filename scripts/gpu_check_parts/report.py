"""What is left of a run: `report.json`, `report.md`, plots and the raw traces in one archive."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_check_parts.plots import draw
from gpu_check_parts.supervise import Outcome
from gpu_check_parts.wheels import ROOT

FILE_LIMIT_BYTES = 16_000_000
"""No file that is handed back may be larger."""

TRACES = "traces.tar.gz"
RAW = (".csv", ".txt", ".json", ".yaml")
"""What goes into it: readings, logs, and the results of runs."""
PACKAGES = ("torch", "transformers", "accelerate", "nvidia-ml-py", "pyarrow", "pydantic", "zeus")


def write_report(out: Path, machine: Mapping[str, Any], outcomes: Sequence[Outcome], took_s: float) -> dict[str, Any]:
    """Write everything to `out` and return what `report.json` holds."""
    directories = [out / "parts" / outcome.part.name for outcome in outcomes]
    places = {str(out): "OUT", str(ROOT): "REPOSITORY", sys.prefix: "PYTHON", tempfile.gettempdir(): "TMP"}
    for directory in directories:
        forget_places(directory, places)
    packed, left_out = pack_traces(out, directories)
    series = [curve for outcome in outcomes for curve in outcome.series]
    plots = draw(series, out)
    report = {
        "machine": dict(machine),
        "took_s": round(took_s, 1),
        "parts": [_as_json(outcome) for outcome in outcomes],
        "series": series,
        "plots": plots or "none: matplotlib is not installed here; `--adopt` draws them where it is",
        "traces": packed,
        "left_out": left_out,
    }
    report = json.loads(_placeless(json.dumps(report), places))
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (out / "report.md").write_text(as_markdown(report), encoding="utf-8")
    return report


def forget_places(directory: Path, places: Mapping[str, str]) -> None:
    """Write a name for each of some paths into the raw files below a directory: evidence needs no machine's paths."""
    for file in filter(_is_raw, directory.rglob("*")):
        content = file.read_text(encoding="utf-8", errors="replace")
        file.write_text(_placeless(content, places), encoding="utf-8")


def _placeless(text: str, places: Mapping[str, str]) -> str:
    for path, name in places.items():
        text = text.replace(path, name)
    return text


def describe_machine(board: Mapping[str, Any], rehearsal: bool) -> dict[str, Any]:
    """Where this runs: the board, versions, and the state of the source."""
    return {
        "rehearsal": rehearsal,
        **board,
        "taken_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "source": _source_digest(),
    }


def pack_traces(out: Path, directories: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Put raw readings and logs into one archive, largest files left out where it would be too large.

    Returns:
        Names of the files in it, and of those left out.
    """
    kept = {file: directory.parent for directory in directories for file in directory.rglob("*") if _is_raw(file)}
    files = sorted(kept, key=_size)
    left_out: list[str] = []
    while True:
        with tarfile.open(out / TRACES, "w:gz") as archive:
            for file in files:
                archive.add(file, arcname=_place(file, kept[file]))
        if _size(out / TRACES) <= FILE_LIMIT_BYTES or not files:
            return [_place(file, kept[file]) for file in sorted(files)], left_out
        largest = files.pop()
        left_out.append(_place(largest, kept[largest]))


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    machine = report["machine"]
    title = "Rehearsal on a scripted board: no evidence of anything" if machine["rehearsal"] else machine["gpu"]
    parts = report["parts"]
    text = [
        f"# {title}",
        "",
        f"Written by `scripts/gpu_check.py` on {machine['taken_at']}, in {report['took_s']:.0f} s. Expectations were "
        "written down before the parts ran.",
        "",
        *_table(("", ""), [(name, _shown(value)) for name, value in machine.items()]),
        "",
        "## Parts",
        "",
        *_table(("part", "asks", "took (s)", "limit (s)", "ended"), [_part_row(part) for part in parts]),
        "",
        "## Lines",
        "",
        *_table(
            ("line", "risk", "expected", "measured", "verdict"), [row for part in parts for row in _line_rows(part)]
        ),
    ]
    problems = [f"- {part['name']}: {_cell(problem)}" for part in parts for problem in part["problems"]]
    if problems:
        text += ["", "## What went wrong", "", *problems]
    plots = report["plots"]
    text += ["", "## Plots", ""]
    text += [plots] if isinstance(plots, str) else [f"![{name}]({name})" for name in plots]
    text += ["", f"Raw readings of every part are in `{TRACES}` ({len(report['traces'])} files"]
    text[-1] += f"; too large: {', '.join(report['left_out'])})." if report["left_out"] else ")."
    return "\n".join(text) + "\n"


def _as_json(outcome: Outcome) -> dict[str, Any]:
    lines = [
        {"key": line.key, "risk": line.risk, "expected": line.expectation, **outcome.findings[line.key]}
        for line in outcome.part.lines
    ]
    return {
        "name": outcome.part.name,
        "asks": outcome.part.asks,
        "limit_s": outcome.part.limit_s,
        "took_s": round(outcome.took_s, 1),
        "ended": outcome.ended,
        "lines": lines,
        "problems": list(outcome.problems),
    }


def _part_row(part: Mapping[str, Any]) -> tuple[str, ...]:
    return part["name"], part["asks"], f"{part['took_s']:.1f}", f"{part['limit_s']:.0f}", part["ended"]


def _line_rows(part: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (f"`{line['key']}`", str(line["risk"] or ""), line["expected"], line["measured"], line["verdict"])
        for line in part["lines"]
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows),
    ]


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _shown(value: Any) -> str:
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, Mapping) else str(value)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return "not a git checkout"
    done = subprocess.run([git, "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not a git checkout"


def _source_digest() -> str:
    """SHA-256 of all Python source of the package: a copy without its history is told by it."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "src").rglob("*.py")):
        digest.update(f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _is_raw(file: Path) -> bool:
    return file.is_file() and file.suffix in RAW and file.name != "part.json"


def _place(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _size(path: Path) -> int:
    return path.stat().st_size
