"""A small study, 2 × 2 configurations in 3 cycles: what really varies, against what the intervals say."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu_check_parts.lines import Book, Line, percent, spread

LINES = (
    Line("study.completed", "all runs of a study of 2 x 2 configurations in 3 cycles complete"),
    Line(
        "study.trace",
        "where the driver keeps samples of its own, they are every run's power trace, and its counter agrees",
    ),
    Line("study.report", "the study and each of its runs have a report"),
    Line("study.spread", "joules per token of one configuration vary by less than 2 % over its cycles"),
    Line("study.intervals", "the comparative intervals hold the configuration's mean in at least 4 of 5 runs"),
)

FILE = """
name: gpu-check
model: {model}
dataset: {{synthetic: {{n: {n}, input_len: {input_len}, output_len: {output_len}}}}}
decoder: {{preset: deterministic, min_new_tokens: {output_len}}}
pytorch: {{device: {device}}}
warmup: {{n_warmup: 1, thermal_floor_seconds: 0}}
baseline: {{enabled: false}}
measurement: {{min_duration_seconds: {least_s}, save_trace: true}}
sweep:
  pytorch.batch_size: [1, {batch}]
  precision: [{precisions}]
execution: {{n_cycles: {cycles}, cycle_order: interleaved, config_gap_seconds: 0, cycle_gap_seconds: 0}}
"""

SAVING_S = 5.0
"""Kept for stopping an unfinished study and reading what it has, in seconds."""


def run_study(rig: Any, book: Book) -> None:
    """By the command line, as a user would; an unfinished one is interrupted, and what it has counts."""
    cycles = rig.count(3, 2)
    precisions = [rig.precision] if rig.rehearsal else [rig.precision, "fp16"]
    file = rig.directory / "study.yaml"
    file.write_text(
        FILE.format(
            model=rig.models.small,
            n=rig.count(8, 2),
            input_len=rig.count(128, 8),
            output_len=rig.count(32, 8),
            precisions=", ".join(precisions),
            device=rig.device,
            least_s=rig.seconds(3.0, 0.3),
            batch=rig.count(8, 2),
            cycles=cycles,
        ),
        encoding="utf-8",
    )
    results = rig.directory / "study"
    _run_in_time(rig, [sys.executable, "-m", "llenergymeasure", "run", str(file), "--output", str(results)])
    runs = _read(results)
    total, planned = sum(map(len, runs.values())), 2 * len(precisions) * cycles
    book.judge("study.completed", total == planned, f"{total} of {planned} runs")
    _judge_traces(rig, book, results)
    pages = [file.parent.name for file in results.rglob("report.html")]
    book.judge("study.report", len(pages) == total + 1, f"{len(pages)} reports of {total} runs and their study")
    _judge_spread(book, {name: found for name, found in runs.items() if len(found) >= 2})


STEPS = (run_study,)


def _run_in_time(rig: Any, command: list[str]) -> None:
    with (rig.directory / "study-log.txt").open("wb") as log:
        study = subprocess.Popen(command, env=rig.environment(), stdout=log, stderr=log, start_new_session=True)
        try:
            study.wait(max(1.0, rig.left_s - SAVING_S))
        except subprocess.TimeoutExpired:
            os.kill(study.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):  # what is on disk by then counts all the same
                study.wait(SAVING_S - 1.5)


def _read(directory: Path) -> dict[str, list[dict[str, float]]]:
    """J/token and its comparative half-width of every run with energy, by configuration."""
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for file in sorted(directory.rglob("result.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        joules, uncertainty = result.get("avg_energy_per_token_j"), result.get("uncertainty") or {}
        run = {"j_per_token": joules, "half_width_j": uncertainty.get("comparative_per_token_j")}
        runs[result["measurement_config_hash"]].append({**run, "tokens_per_s": result["avg_tokens_per_second"]})
    return runs


def _judge_traces(rig: Any, book: Book, directory: Path) -> None:
    from pyarrow import parquet

    from llenergymeasure.core.energy.boards import has_known_buffer

    sources, off_pct, agreeing = set(), [], []
    for file in sorted(directory.rglob("trace*.parquet")):
        sources |= set(parquet.read_table(file, columns=["power_source"])["power_source"].to_pylist())
        audit = json.loads((file.parent / "result.json").read_text(encoding="utf-8"))["energy_audit"] or {}
        agreeing.append(audit.get("agrees", False))
        off_pct.append(audit.get("disagreement_pct"))
    kept = has_known_buffer(rig.gpu, None)
    holds = all(agreeing) and (not kept or sources == {"driver_buffer"})
    measured = f"sources {sorted(map(str, sources))}, integral against counter {off_pct} %, {sum(agreeing)} agree"
    book.judge("study.trace", holds if agreeing else None, measured, driver_keeps=kept)


def _judge_spread(book: Book, runs: dict[str, list[dict[str, float]]]) -> None:
    told, spreads, held = [], [], []
    for name, found in runs.items():
        values = [run["j_per_token"] for run in found]
        if None in values:
            continue
        mean = statistics.fmean(values)
        spreads.append(spread(values))
        stated = [run["half_width_j"] for run in found if run["half_width_j"] is not None]
        held += [abs(value - mean) <= half for value, half in zip(values, stated, strict=False)]
        states = f", states ±{percent(statistics.fmean(stated), mean):.2f} %" if stated else ""
        told.append(f"{name[:8]}: {mean:.4f} J/token, CV {spreads[-1]:.2f} % over {len(values)}{states}")
    if not spreads:
        return
    book.judge("study.spread", max(spreads) < 2.0, "; ".join(told), runs=runs)
    measured = f"{sum(held)} of {len(held)} hold their configuration's mean" if held else "no intervals were stated"
    book.judge("study.intervals", sum(held) >= 0.8 * len(held) if held else None, measured)
