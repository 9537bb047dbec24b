"""What only a real board can show, in under eight minutes, without a network; what takes longer by `--only`.

    python scripts/gpu_check.py --out DIR [--wheels DIR] [--only PART ...]     on a machine with a GPU
    python scripts/gpu_check.py --rehearse [--out DIR]                         on one without: a scripted board
    python scripts/gpu_check.py --adopt DIR                                    file a run under docs/validation/

Each part runs in a process of its own with a time limit of its own; its expectations are written down before it runs.
`--out` gets report.md, report.json, plots (where matplotlib is installed) and traces.tar.gz.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "src")]

from gpu_check_parts.adopt import NotEvidenceError, adopt  # noqa: E402
from gpu_check_parts.lines import Book  # noqa: E402
from gpu_check_parts.plan import (  # noqa: E402
    ON_REQUEST,
    PARTS,
    REHEARSAL_FACTOR,
    TOTAL_S,
    Part,
    budget_table,
    part_named,
    stretch,
)
from gpu_check_parts.report import describe_machine, write_report  # noqa: E402
from gpu_check_parts.supervise import ENDED, run_parts  # noqa: E402
from gpu_check_parts.wheels import download_command, missing_modules, put_on_path, unpacked  # noqa: E402

BOARD_FILE = "board.json"

AHEAD = ("torch", "transformers.models.llama.modeling_llama", "llenergymeasure.core.backends.pytorch.backend")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, rehearse or adopt; returns the exit code: 1 where a part broke, 0 whatever the verdicts say."""
    asked = _parser().parse_args(arguments)
    if asked.expectations:
        print("\n".join(f"{line.key:<28} {line.expectation}" for part in (*PARTS, *ON_REQUEST) for line in part.lines))
        return 0
    if asked.adopt:
        try:
            print(f"filed under {adopt(asked.adopt)}")
        except NotEvidenceError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
        return 0
    return _run(asked)


def _run(asked: argparse.Namespace) -> int:
    started_s = time.monotonic()
    parts = [part_named(name) for name in asked.only] if asked.only else list(PARTS)
    out = (asked.out or Path(tempfile.mkdtemp(prefix="gpu-check-"))).resolve()
    work = out / "parts"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    factor = stretch(parts, asked.seconds) if asked.only else 1.0
    print(f"Budget:\n{budget_table(parts, asked.seconds, factor)}\n", flush=True)
    if asked.wheels:
        names = unpacked(asked.wheels, work / "packages")
        print(f"{len(names)} wheels from {asked.wheels}: {', '.join(names)}", flush=True)
        put_on_path([work / "packages"])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(work / "packages"), os.environ.get("PYTHONPATH")]))
    if missing := missing_modules():
        print(f"Error: not installed: {', '.join(missing)}. Fetch wheels where there is a network, and pass --wheels:")
        print(download_command(f"{sys.version_info.major}.{sys.version_info.minor}"))
        return 2
    (work / "expectations.json").write_text(
        json.dumps({line.key: line.expectation for part in parts for line in part.lines}, indent=1), encoding="utf-8"
    )
    _import_ahead()
    slower = REHEARSAL_FACTOR if asked.rehearse else 1.0
    outcomes = run_parts(parts, partial(_run_part, work, asked.rehearse), work, slower * asked.seconds, slower * factor)
    report = write_report(out, describe_machine(_board(work), asked.rehearse), outcomes, time.monotonic() - started_s)
    shutil.rmtree(work)
    verdicts = [line["verdict"] for part in report["parts"] for line in part["lines"]]
    print(f"{', '.join(f'{verdicts.count(v)} {v}' for v in sorted(set(verdicts)))}; see {out / 'report.md'}")
    return int(any(outcome.ended != ENDED or outcome.problems for outcome in outcomes))


def _import_ahead() -> None:
    """Import what parts need and what takes seconds, once for all of them. Nothing here may touch a GPU yet."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # without a network, looking for optional files takes minutes
    started_s = time.monotonic()
    for name in AHEAD:
        if find_spec(name.partition(".")[0]) is not None:
            import_module(name)
    print(f"imports took {time.monotonic() - started_s:.1f} s", flush=True)


def _run_part(out: Path, rehearse: bool, part: Part) -> int:
    """One part, in this process. Steps that fail are noted, and the next one runs."""
    logging.basicConfig(level=logging.WARNING)
    book = Book(out / part.name, part.lines)
    from gpu_check_parts.rig import open_rig

    with open_rig(out / part.name, rehearse=rehearse) as rig:
        _tell_board(rig, out)
        for step in part.steps:
            print(f"{time.monotonic():.1f} {step.__name__}", flush=True)
            try:
                step(rig, book)
            except Exception as error:
                logging.exception("%s failed", step.__name__)
                book.problem(step.__name__, error)
    return 0


def _tell_board(rig: Any, out: Path) -> None:
    gpu = rig.gpu
    board = {
        "gpu": gpu.name,
        "uuid": gpu.uuid,
        "driver": gpu.driver.driver_version(),
        "power limit (W)": gpu.power_limit_w,
        "memory (MB)": gpu.memory_total_mb,
        "persistence mode": gpu.persistence_mode,
    }
    (out / BOARD_FILE).write_text(json.dumps(board), encoding="utf-8")


def _board(work: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((work / BOARD_FILE).read_text(encoding="utf-8"))
    except OSError:
        return {"gpu": "no board answered"}
    return told


def _parser() -> argparse.ArgumentParser:
    requested = "\n".join(f"  {part.name:<12}{part.limit_s:>5.0f} s   {part.asks}" for part in ON_REQUEST)
    epilog = (
        f"Parts and their limits:\n{budget_table(PARTS)}\n\nWith --only alone:\n{requested}\n\n"
        f"Wheels for a bare machine:\n  {download_command()}"
    )
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in (*PARTS, *ON_REQUEST)]
    parser.add_argument("--out", type=Path, help="directory for the report; default: a new temporary one")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="PART", help="only this part; may be repeated"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=TOTAL_S,
        help="time in all, which parts named by --only share; default: %(default).0f",
    )
    parser.add_argument("--wheels", type=Path, help="directory of wheels to put on the path")
    parser.add_argument("--rehearse", action="store_true", help="on a scripted board, in a share of the time")
    parser.add_argument("--adopt", type=Path, metavar="DIR", help="file the report in DIR under docs/validation/")
    parser.add_argument("--expectations", action="store_true", help="print what is expected, and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
