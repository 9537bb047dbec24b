"""The files beside a result: the 1 Hz time series, and on request the raw power trace and the generated texts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llenergymeasure.core.energy.trace import write_trace
from llenergymeasure.core.observations import Observations, slice_limits
from llenergymeasure.core.timeseries import has_samples, write_timeseries

TIMESERIES_FILE = "timeseries.parquet"
TRACE_FILE = "trace.parquet"
OUTPUTS_FILE = "outputs.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Artefacts:
    """Paths of what was written; `None` where there was nothing to write.

    Args:
        timeseries: 1 Hz rows per device.
        trace: Every sample at full rate, from which the energy can be computed again.
        outputs: Prompts, generated texts and token counts, one JSON object per line.
        further: Whatever else belongs beside the result: the traces of further processes.
    """

    timeseries: Path | None = None
    trace: Path | None = None
    outputs: Path | None = None
    further: tuple[Path, ...] = ()

    @property
    def beside_timeseries(self) -> tuple[Path, ...]:
        """Every file but the time series."""
        return (*(path for path in (self.trace, self.outputs) if path is not None), *self.further)


def write_artefacts(seen: Observations, work_dir: Path) -> Artefacts:
    """Write the files that belong beside the result into `work_dir`, which must exist.

    One that the disk refuses is left out, and the log says so.

    Raises:
        ExperimentError: Nothing is left of the window to count.
    """
    energy, wanted = seen.window.energy, seen.config.measurement

    def write_outputs(path: Path) -> None:
        with path.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in output_rows(seen))

    timeseries = trace = outputs = None
    if has_samples(energy):
        timeseries = write_or_go_without(work_dir / TIMESERIES_FILE, lambda path: write_timeseries(energy, path))
    if energy.telemetry is not None and wanted.save_trace:
        limits = slice_limits(wanted, seen.window)
        trace = write_or_go_without(work_dir / TRACE_FILE, lambda path: write_trace(energy, path, limits))
    if wanted.save_outputs:
        outputs = write_or_go_without(work_dir / OUTPUTS_FILE, write_outputs)
    return Artefacts(timeseries, trace, outputs)


def output_rows(seen: Observations) -> Iterator[dict[str, Any]]:
    """What the model was asked and what it answered, request by request."""
    prompts = {prompt.index: prompt for prompt in seen.prompts.prompts}
    for output in seen.window.outputs:
        prompt = prompts[output.index]
        yield {
            "index": output.index,
            "prompt": seen.tokenizer.decode(prompt.token_ids) if prompt.text is None else prompt.text,
            "truncated": prompt.truncated,
            "output": seen.tokenizer.decode(output.token_ids),
            "input_tokens": output.input_tokens,
            "output_tokens": output.output_tokens,
            "finish_reason": output.finish_reason,
        }


def write_or_go_without(path: Path, write: Callable[[Path], object]) -> Path | None:
    """`path` when `write` could fill it, else `None` and a line in the log: figures must outlive a full disk."""
    try:
        write(path)
    except OSError as error:
        logger.warning("%s could not be written, so the result goes without it: %s", path.name, error)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return path
